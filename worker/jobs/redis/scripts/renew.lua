#!lua flags=allow-oom
-- Renew leases, given as pairs of job and token; returns those that are lost.

local lost = {}
for i = 2, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  if leased_job(id, token) then
    call('ZADD', key('leases'), now + settings.lease_ms, id) -- from now, not from its end
  else -- it ran out, and the job is waiting, ended, or has a higher token
    lost[#lost + 1] = {id, tonumber(token)}
  end
end
return lost
