-- What the workers tell that were heard of not too long ago.

for _, worker in ipairs(due('heard', now)) do
  redis.call('HDEL', key('workers'), worker)
  redis.call('ZREM', key('heard'), worker)
end
return redis.call('HVALS', key('workers'))
