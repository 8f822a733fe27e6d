#!lua flags=allow-oom
-- Remove a worker from the list.

if redis.call('HDEL', key('workers'), ARGV[2]) == 1 then
  redis.call('ZREM', key('heard'), ARGV[2])
  publish('workers', ARGV[2])
end
