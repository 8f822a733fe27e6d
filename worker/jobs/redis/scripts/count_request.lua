#!lua flags=allow-oom
-- Count a request in its client's window of a minute, which begins with the first one; returns the
-- milliseconds until the next window, or 0 for a request within the limit.

local limit = tonumber(ARGV[3])
local name = key('limit', limit .. ':' .. ARGV[2])
redis.call('SET', name, 0, 'NX', 'PX', 60000)
if redis.call('INCR', name) <= limit then
  return 0
end
return math.max(1, redis.call('PTTL', name))
