-- Lease the jobs at the head of a model's queue that fit into the free rows.

local model, rows, consumer, is_first = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5] == '1'
-- A worker has one job on its last try at a time: if that job kills it, the others survive.
local takes_last_try = not holds(ARGV[6], ARGV[7])
local queue, stream = key('waiting', model), key('stream', model)

-- Mark the job as pending in the consumer group, for whoever looks with XPENDING. On its first
-- delivery it is the next entry that the group has not read, since queue and stream have one order;
-- a redelivered job is pending already, and is taken over.
local function take_entry(seq, token)
  local command = {'XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', 1, 'STREAMS', stream, '>'}
  if token > 1 then
    command = {'XCLAIM', stream, 'workers', consumer, 0, seq .. '-1', 'FORCE', 'JUSTID'}
  end
  local reply = redis.pcall(unpack(command))
  if reply and reply.err then -- there is no group yet: make it, as if it had read up to this entry
    redis.call('XGROUP', 'CREATE', stream, 'workers', seq .. (token > 1 and '-1' or '-0'))
    redis.call(unpack(command))
  end
end

-- Whether one more lost worker ends the job.
local function is_last_try(job)
  local lost = tonumber(job.deliveries)
  return lost > 0 and lost + 1 >= settings.max_deliveries
end

local function lease(id, job)
  local name = key('job', id)
  dequeue(id, job)
  local token = redis.call('HINCRBY', name, 'token', 1) -- fences off whoever had the job before
  redis.call('HINCRBY', name, 'deliveries', 1) -- taken back by who hands the job back
  redis.call('HSET', name, 'state', 'running', 'holder', consumer)
  redis.call('ZADD', key('leases'), now + settings.lease_ms, id) -- see sweep: it runs out then
  take_entry(job.seq, token)
  return {id, token, tonumber(job.deadline) - now, job.job, is_last_try(job) and 1 or 0}
end

-- Delete the consumers of workers that were killed.
local function forget_consumers()
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, 'workers')
  for _, fields in ipairs(consumers.err and {} or consumers) do
    local one = {}
    for i = 1, #fields, 2 do
      one[fields[i]] = fields[i + 1]
    end
    if one.pending == 0 and one.idle > settings.tombstone_ms then
      redis.call('XGROUP', 'DELCONSUMER', stream, 'workers', one.name)
    end
  end
end

if is_first then
  forget_consumers()
end
local leases, passed_over = {}, 0
while rows > 0 do
  local id = redis.call('ZRANGE', queue, passed_over, passed_over)[1]
  if not id then
    break
  end
  local job = read(id, 'model', 'rows', 'seq', 'owner', 'deadline', 'job', 'deliveries')
  if not job.job then -- its keys were evicted or deleted by hand
    redis.call('ZREM', queue, id)
  elseif is_last_try(job) and not takes_last_try then
    passed_over = passed_over + 1 -- it stays in the queue, for another worker
  elseif #leases > 0 and tonumber(job.rows) > rows then
    break -- a smaller job behind it must not overtake it
  else
    takes_last_try = takes_last_try and not is_last_try(job)
    leases[#leases + 1] = lease(id, job)
    rows = rows - tonumber(job.rows)
  end
end
return leases
