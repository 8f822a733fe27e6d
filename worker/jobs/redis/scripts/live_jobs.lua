#!lua flags=allow-oom
-- Ids of all jobs that have not ended, the latest first.

return call('ZREVRANGE', key('deadlines'), 0, -1)
