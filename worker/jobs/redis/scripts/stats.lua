#!lua flags=allow-oom
-- State of the queue, and of the queue of each model.

local first, submitted, models = math.huge, now, {}
for _, model in ipairs(call('SMEMBERS', key('models'))) do
  local head, job = waiting_at(key('waiting', model), 0)
  if head and job.seq < first then
    first, submitted = job.seq, job.submitted
  end
  local model_age_ms = head and math.max(0, now - job.submitted) or 0
  local model_depth = call('ZCARD', key('waiting', model))
  models[#models + 1] = {model, model_depth, model_age_ms, completion_rate(model)}
end
local running = call('ZCARD', key('leases'))
local depth = call('ZCARD', key('deadlines')) - running
local age_ms = math.max(0, now - submitted)
return {depth, running, age_ms, models, call('HGETALL', key('totals'))}
