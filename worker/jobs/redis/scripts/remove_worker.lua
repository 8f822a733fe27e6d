#!lua flags=allow-oom
-- Remove a worker from the list.

if call('HDEL', key('workers'), ARGV[2]) == 1 then
  call('ZREM', key('heard'), ARGV[2])
  publish('workers', ARGV[2])
end
