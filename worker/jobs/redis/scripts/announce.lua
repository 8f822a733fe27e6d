#!lua flags=allow-oom
-- Announce the status of a worker, for as long as a lease; returns how many are announced.
--
-- ARGV[4] is the name under which it claims; from then on come models of which no job is to wake it.

local worker, status = ARGV[2], ARGV[3]

local before = call('HGET', key('workers'), worker)
if before ~= status then
  call('HSET', key('workers'), worker, status)
  publish('workers', worker)
end
call('ZADD', key('heard'), now + settings.lease_ms, worker)
for i = 5, #ARGV do
  wait_for_job(ARGV[i], ARGV[4], 0)
end
return call('ZCARD', key('heard'))
