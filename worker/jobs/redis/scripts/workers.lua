#!lua flags=allow-oom
-- Statuses of the workers that announced theirs within the time of a lease.

for _, worker in ipairs(call('HKEYS', key('workers'))) do -- in case `heard` is lost
  call('ZADD', key('heard'), 'NX', now + settings.lease_ms, worker)
end
for _, worker in ipairs(due('heard', now)) do
  call('HDEL', key('workers'), worker)
  call('ZREM', key('heard'), worker)
end
return call('HVALS', key('workers'))
