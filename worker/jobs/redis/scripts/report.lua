#!lua flags=allow-oom
-- Take what a worker reports of its jobs, in order; for each report 1, or 0 when the lease is lost.
--
-- ARGV[2] is how many events of a job are kept. A report is five arguments: the job, the token of
-- its lease, its kind, the event or the outcome, and whether the job's idempotency key is free from
-- now on. The kind is 'event', 'back' (handed back), 'unread' (handed back, since the worker cannot
-- read it) or the state in which the job ends.

local WIDTH = 5
local REASONS = {back = 'handed_back', unread = 'unreadable'}
local max_events, watched = ARGV[2], {}

local function apply(id, token, kind, data, releases_idempotency_key)
  local is_end = kind ~= 'event' and not REASONS[kind]
  local job = leased_job(id, token)
  if not job then
    if is_end then
      add_total('fenced') -- a result for nothing: somebody else has the job, or it has ended
    end
    return 0
  end
  if kind == 'event' then
    local number = add(key('job', id), 'events', 1)
    call('XADD', key('events', id), 'MAXLEN', max_events, digits(number) .. '-1', 'event', data)
    watched[id] = true
  elseif REASONS[kind] then
    call('HINCRBY', key('job', id), 'deliveries', -1) -- no worker was lost with it
    requeue(id, job, REASONS[kind])
  else
    count_completion(job.model)
    end_job(id, job, kind, data, releases_idempotency_key == '1')
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
