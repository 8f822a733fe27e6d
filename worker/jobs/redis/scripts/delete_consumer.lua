-- A consumer goes: it is no longer among those of the models' groups.

for _, model in ipairs(redis.call('SMEMBERS', key('models'))) do
  redis.pcall('XGROUP', 'DELCONSUMER', key('stream', model), 'workers', ARGV[2])
end
