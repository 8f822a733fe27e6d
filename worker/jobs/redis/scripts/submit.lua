#!lua
-- Accept a job, or answer why not.

local id, payload, model, rows, owner = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local timeout_ms, submitted_ms, keep = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local name, fingerprint, share = ARGV[10], ARGV[11], tonumber(ARGV[12])

-- Number all jobs anew, in the same order; returns the number after theirs.
local function renumber()
  local jobs = {}
  for _, one in ipairs(call('ZRANGE', key('deadlines'), 0, -1)) do
    local job = read(one)
    if job and is_live(job.state) then
      job.id = one
      jobs[#jobs + 1] = job
    end
  end
  table.sort(jobs, function(a, b) return a.seq < b.seq end)
  for i, job in ipairs(jobs) do
    call('HSET', key('job', job.id), 'seq', i)
    call('ZADD', key('waiting', job.model), 'XX', i, job.id)
  end
  call('SET', key('seq'), #jobs + 1)
  return #jobs + 1
end

-- A number behind all jobs of the model that wait; they are numbered anew where the count is lost.
local function next_seq()
  local seq = call('INCR', key('seq'))
  local last = call('ZRANGE', key('waiting', model), -1, -1, 'WITHSCORES')[2]
  local is_behind = seq > 1 and seq > (tonumber(last) or 0) and seq <= MAX_NUMBER
  return is_behind and seq or renumber()
end

if name ~= '' then
  local known = call('HMGET', key('key', name), 'job', 'print')
  if known[1] and field(known[1], 'key') == name then
    return known[2] == fingerprint and {'known', known[1]} or {'conflict'}
  end
end
if redis.call('EXISTS', key('job', id)) == 1 then -- its answer was lost on the way
  return {'new', id}
end

local depth = call('ZCARD', key('waiting', model))
if depth >= settings.max_jobs then
  return {'full', depth, completion_rate(model)}
end
local own = tonumber(call('HGET', key('owners', model), owner)) or 0
if own >= share then
  return {'share', depth, completion_rate(model), own}
end

count_live(model)
local seq, kept_ms = next_seq(), timeout_ms + settings.tombstone_ms -- even if no list names it
call('HSET', key('job', id), 'job', payload, 'model', model, 'rows', rows, 'owner', owner,
  'keep', keep, 'key', name, 'seq', seq, 'state', 'waiting', 'token', 0, 'deliveries', 0,
  'submitted', submitted_ms, 'deadline', now + timeout_ms, 'events', 0)
call('PEXPIRE', key('job', id), kept_ms)
list(id, {state = 'waiting', model = model, seq = seq, owner = owner, deadline = now + timeout_ms})
if call('PTTL', key('stream', model)) == -1 then -- left by versions that kept one
  call('PEXPIRE', key('stream', model), settings.tombstone_ms)
end
if name ~= '' then
  call('HSET', key('key', name), 'job', id, 'print', fingerprint)
  call('PEXPIRE', key('key', name), kept_ms)
end
add_total('accepted')
return {'new', id}
