#!lua
-- Accept a job, or answer why not.

local id, payload, model, rows, owner = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local timeout_ms, submitted_ms, keep = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local name, fingerprint, share = ARGV[10], ARGV[11], tonumber(ARGV[12])

if name ~= '' then
  local known = redis.call('HMGET', key('key', name), 'job', 'print')
  if known[1] and redis.call('EXISTS', key('job', known[1])) == 1 then
    return known[2] == fingerprint and {'known', known[1]} or {'conflict'}
  end
end
if redis.call('EXISTS', key('job', id)) == 1 then -- its answer was lost on the way
  return {'new', id}
end

local depth = redis.call('ZCARD', key('waiting', model))
if depth >= settings.max_jobs then
  return {'full', depth, drain_rate()}
end
local own = tonumber(redis.pcall('HGET', key('owners', model), owner)) or 0
if own >= share then
  return {'share', depth, drain_rate(), own}
end

if redis.call('ZCARD', key('deadlines')) == 0 then
  restart_throughput()
end
local seq = redis.pcall('INCR', key('seq'))
if type(seq) == 'table' then -- it cannot be read: begin anew, behind all that were given
  seq = now
  redis.call('SET', key('seq'), seq)
end
redis.call('HSET', key('job', id), 'job', payload, 'model', model, 'rows', rows, 'owner', owner,
  'keep', keep, 'key', name, 'seq', seq, 'state', 'waiting', 'token', 0, 'deliveries', 0,
  'submitted', submitted_ms, 'deadline', now + timeout_ms, 'events', 0)
redis.call('ZADD', key('deadlines'), now + timeout_ms, id)
redis.call('SADD', key('models'), model)
if redis.call('PTTL', key('stream', model)) == -1 then -- left by versions that kept one
  redis.call('PEXPIRE', key('stream', model), settings.tombstone_ms)
end
enqueue(id, {model = model, seq = seq, owner = owner})
if name ~= '' then
  redis.call('HSET', key('key', name), 'job', id, 'print', fingerprint)
end
add_total('accepted')
return {'new', id}
