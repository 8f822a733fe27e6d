#!lua flags=allow-oom
-- How a job has ended, with at most ARGV[5] of its events from number ARGV[4] on.
--
-- While it has not ended, the same step registers the front end for messages: none is missed.

local id, front, first, count = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local job = read(id)
if not job then
  return {'unknown'}
end
local events = {}
if count > 0 then
  for _, entry in ipairs(call('XRANGE', key('events', id), first, '+', 'COUNT', count)) do
    events[#events + 1] = {tonumber(string.match(entry[1], '%d+')), entry[2][2] or ''}
  end
end
if is_live(job.state) then
  reindex_if_missing(id, job)
  call('SADD', key('watch', id), front)
  return {job.state, job.deadline - now, events}
end
local outcome = call('GET', key('outcome', id))
if not outcome then
  uncount(id)
  return {'gone'}
end
return {job.state, count > 0 and '' or outcome, events}
