#!lua flags=allow-oom
-- State of the queue; depth and age for each priority.

-- When the oldest job that waits was submitted.
local function oldest(model, priority)
  local name = key('submitted', priority .. ':' .. model)
  while true do
    local first = call('ZRANGE', name, 0, 0, 'WITHSCORES')
    local job = first[1] and read(first[1])
    if not first[1] or job and job.state == 'waiting' then
      return tonumber(first[2]) or now
    end
    call('ZREM', name, first[1]) -- set aside, or a worker of a version before has it
  end
end

local priorities = {}
for i, priority in ipairs(PRIORITIES) do
  local depth, submitted = 0, now
  for _, model in ipairs(call('SMEMBERS', key('models'))) do
    submitted = math.min(submitted, oldest(model, priority))
    depth = depth + call('ZCOUNT', key('waiting', model), unpack(RANGES[priority]))
  end
  priorities[i] = {depth, now - submitted}
end
local running = call('ZCARD', key('leases'))
local depth = call('ZCARD', key('deadlines')) - running
return {depth, running, completion_rate(), call('HGETALL', key('totals')), priorities}
