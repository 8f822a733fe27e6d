-- Give jobs back unfinished, given as pairs of job and token; those whose lease is lost are not.

for i = 2, #ARGV, 2 do
  if holds(ARGV[i], ARGV[i + 1]) then
    redis.call('HINCRBY', key('job', ARGV[i]), 'deliveries', -1)
    give_back(ARGV[i], 'handed_back')
  end
end
