-- Where a job is.

local job = read(ARGV[2], 'state', 'job', 'model', 'deliveries')
if not job.state then
  return false
end
local position = false
if job.state == 'waiting' then
  position = redis.call('ZRANK', key('waiting', job.model), ARGV[2])
end
return {job.job, job.state, tonumber(job.deliveries), position}
