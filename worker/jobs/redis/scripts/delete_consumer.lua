-- Delete a consumer from every model's group.

for _, model in ipairs(redis.call('SMEMBERS', key('models'))) do
  redis.pcall('XGROUP', 'DELCONSUMER', key('stream', model), 'workers', ARGV[2])
end
