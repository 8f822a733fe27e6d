#!lua flags=allow-oom
-- State of the queue.

local first, submitted = math.huge, now
for _, model in ipairs(redis.call('SMEMBERS', key('models'))) do
  local head, job = waiting_at(key('waiting', model), 0)
  if head and job.seq < first then
    first, submitted = job.seq, job.submitted
  end
end
local running = redis.call('ZCARD', key('leases'))
local depth = redis.call('ZCARD', key('deadlines')) - running
local age_ms = math.max(0, now - submitted)
add(key('totals'), 'accepted', 0) -- it is a hash, whatever it was
return {depth, running, age_ms, drain_rate(), redis.call('HGETALL', key('totals'))}
