-- Take what a worker reports of its jobs, in order; for each report 1, or 0 when the lease is lost.
--
-- ARGV[2] is how many events of a job are kept. A report is five arguments: the job, the token of
-- its lease, its kind, the event or the outcome, and whether the job's idempotency key is free from
-- now on. The kind is 'event', 'back' (handed back) or the state in which the job ends.

local WIDTH = 5
local max_events, watched = ARGV[2], {}

local function apply(id, token, kind, data, frees_key)
  local is_end = kind ~= 'event' and kind ~= 'back'
  if not holds(id, token) then
    if is_end then
      add_total('fenced') -- a result for nothing: somebody else has the job, or it has ended
    end
    return 0
  end
  if kind == 'event' then
    local number = redis.call('HINCRBY', key('job', id), 'events', 1)
    redis.call('XADD', key('events', id), 'MAXLEN', max_events, number .. '-1', 'event', data)
    watched[id] = true
  elseif kind == 'back' then
    redis.call('HINCRBY', key('job', id), 'deliveries', -1) -- no worker was lost with it
    give_back(id, 'handed_back')
  else
    count_throughput()
    end_job(id, kind, data, frees_key == '1')
  end
  return 1
end

local answers = {}
for first = 3, #ARGV, WIDTH do
  answers[#answers + 1] = apply(unpack(ARGV, first, first + WIDTH - 1))
end
for id in pairs(watched) do -- once, however many events
  notify_watchers(id)
end
return answers
