-- State of the queue.

local running = redis.call('ZCARD', key('leases'))
local depth = redis.call('ZCARD', key('deadlines')) - running
local first, submitted = math.huge, now
for _, model in ipairs(redis.call('SMEMBERS', key('models'))) do
  local head = redis.call('ZRANGE', key('waiting', model), 0, 0)[1]
  if head then
    local job = read(head, 'seq', 'submitted')
    if tonumber(job.seq) < first then
      first, submitted = tonumber(job.seq), tonumber(job.submitted)
    end
  end
end
local age_ms = math.max(0, now - submitted)
return {depth, running, age_ms, drain_rate(), redis.call('HGETALL', key('totals'))}
