-- Keep an event for whoever watches the job, unless the lease is lost.

local id, token, event, max_events = ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if holds(id, token) then
  local number = redis.call('HINCRBY', key('job', id), 'events', 1)
  redis.call('XADD', key('events', id), 'MAXLEN', max_events, number .. '-1', 'event', event)
  tell_watchers(id)
end
