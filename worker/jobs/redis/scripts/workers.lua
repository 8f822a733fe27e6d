#!lua flags=allow-oom
-- Statuses of the workers that announced theirs within the time of a lease.

for _, worker in ipairs(due('heard', now)) do
  redis.call('HDEL', key('workers'), worker)
  redis.call('ZREM', key('heard'), worker)
end
return redis.call('HVALS', key('workers'))
