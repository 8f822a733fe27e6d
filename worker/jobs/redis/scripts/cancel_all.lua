#!lua flags=allow-oom
-- Cancel those of some jobs, from the fifth argument on, whose owner is ARGV[2] or ARGV[3] and whose
-- state is ARGV[4], unless that is empty; returns how many.

local num_cancelled = 0
for i = 5, #ARGV do
  local owner = field(ARGV[i], 'owner')
  local job = (owner == ARGV[2] or owner == ARGV[3]) and read(ARGV[i])
  if job and is_live(job.state) and (ARGV[4] == '' or ARGV[4] == job.state) then
    end_without_outcome(ARGV[i], job, 'cancelled')
    num_cancelled = num_cancelled + 1
  end
end
return num_cancelled
