#!lua flags=allow-oom
-- Set a job aside whose request is no such thing.

local job = read(ARGV[2])
if job and is_live(job.state) then
  set_aside(ARGV[2], job)
end
