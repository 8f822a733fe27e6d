#!lua flags=allow-oom
-- State of the queue.

local first, submitted = math.huge, now
for _, model in ipairs(call('SMEMBERS', key('models'))) do
  local head, job = waiting_at(key('waiting', model), 0)
  if head and job.seq < first then
    first, submitted = job.seq, job.submitted
  end
end
local running = call('ZCARD', key('leases'))
local depth = call('ZCARD', key('deadlines')) - running
local age_ms = math.max(0, now - submitted)
return {depth, running, age_ms, completion_rate(), call('HGETALL', key('totals'))}
