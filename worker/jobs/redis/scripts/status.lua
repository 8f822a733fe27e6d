#!lua flags=allow-oom
-- Where a job is.

local job = read(ARGV[2])
if not job then
  return false
end
local position, rate = false, '0'
if is_live(job.state) then
  reindex_if_missing(ARGV[2], job)
end
if job.state == 'waiting' then
  position, rate = call('ZRANK', key('waiting', job.model), ARGV[2]), completion_rate(job.model)
end
return {job.job or '', job.state, job.deliveries or 0, position, rate}
