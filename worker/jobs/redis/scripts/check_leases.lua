#!lua flags=allow-oom
-- Which leases, given as pairs of job and token, are lost.

local lost = {}
for i = 2, #ARGV, 2 do
  if not leased_job(ARGV[i], ARGV[i + 1]) then
    lost[#lost + 1] = {ARGV[i], tonumber(ARGV[i + 1])}
  end
end
return lost
