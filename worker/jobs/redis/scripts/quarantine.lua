#!lua flags=allow-oom
-- Quarantine a job whose request cannot be decoded.

local job = read(ARGV[2])
if job and is_live(job.state) then
  quarantine_job(ARGV[2], job)
end
