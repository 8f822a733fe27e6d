-- End a job with what its worker reports; 0, and counted, when the lease is lost.

local id, token, state, outcome = ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if not holds(id, token) then
  add_total('fenced')
  return 0
end
count_drained()
end_job(id, state, outcome, ARGV[6] == '1')
return 1
