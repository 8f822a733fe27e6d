#!lua flags=allow-oom
-- Announce the status of a worker, for as long as a lease.

local worker, status = ARGV[2], ARGV[3]

local before = call('HGET', key('workers'), worker)
call('HSET', key('workers'), worker, status)
call('ZADD', key('heard'), now + settings.lease_ms, worker)
if before ~= status then
  publish('workers', worker)
end
