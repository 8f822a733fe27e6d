#!lua flags=allow-oom
-- Leave nothing of a job that has ended, unless its outcome is to be kept.

local job = read(ARGV[2])
if job and not is_live(job.state) and job.keep ~= '1' then
  delete_job(ARGV[2])
end
