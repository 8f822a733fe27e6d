#!lua flags=allow-oom
-- Count a request in its client's window of a minute, which begins with the first one; returns the
-- milliseconds until the next window, or 0 for a request within the limit.

local limit = tonumber(ARGV[3])
local name = key('limit', digits(limit) .. ':' .. ARGV[2])
local count, left_ms = call('INCR', name), call('PTTL', name)
if left_ms < 0 then
  left_ms = 60000
  call('PEXPIRE', name, left_ms)
end
return count <= limit and 0 or math.max(1, left_ms)
