#!lua flags=allow-oom
-- State of the queue, and depth and age for each model and for each priority.

-- When the oldest job that waits was submitted.
local function oldest(model, priority)
  local name = key('submitted', priority .. ':' .. model)
  while true do
    local first = call('ZRANGE', name, 0, 0, 'WITHSCORES')
    local job = first[1] and read(first[1])
    if not first[1] or job and job.state == 'waiting' then
      return math.min(tonumber(first[2]) or now, now)
    end
    call('ZREM', name, first[1]) -- quarantined, or a worker of a version before has it
  end
end

local priorities, models = {}, {}
for i in ipairs(PRIORITIES) do
  priorities[i] = {0, 0}
end
for _, model in ipairs(call('SMEMBERS', key('models'))) do
  local queue, submitted = key('waiting', model), now
  for i, priority in ipairs(PRIORITIES) do
    local first, line = oldest(model, priority), priorities[i]
    line[1] = line[1] + call('ZCOUNT', queue, unpack(RANGES[priority]))
    line[2] = math.max(line[2], now - first)
    submitted = math.min(submitted, first)
  end
  models[#models + 1] = {model, call('ZCARD', queue), now - submitted, completion_rate(model)}
end
local running = call('ZCARD', key('leases'))
local depth = call('ZCARD', key('deadlines')) - running
return {depth, running, call('HGETALL', key('totals')), models, priorities}
