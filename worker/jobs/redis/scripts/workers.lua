#!lua flags=allow-oom
-- Statuses of the workers that are named, or each that announced its own within the time of a lease,
-- after its name.

local workers, heard = key('workers'), key('heard')
if #ARGV > 1 then
  return call('HMGET', workers, unpack(ARGV, 2))
end
if call('ZCARD', heard) ~= call('HLEN', workers) then -- `heard` was lost
  for _, worker in ipairs(call('HKEYS', workers)) do
    call('ZADD', heard, 'NX', now + settings.lease_ms, worker)
  end
end
repeat
  local silent = due('heard', now)
  for _, worker in ipairs(silent) do
    call('HDEL', workers, worker)
    call('ZREM', heard, worker)
  end
until #silent == 0
return call('HGETALL', workers)
