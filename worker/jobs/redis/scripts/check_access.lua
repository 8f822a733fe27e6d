#!lua flags=allow-oom
-- Which commands, from the second argument on, the user may not use below a prefix: KEYS[1] of
-- keys, ARGV[1] of channels. Nothing is run.

local refused = {}
for i = 2, #ARGV do
  local is_news = ARGV[i] == 'PUBLISH' or ARGV[i] == 'SUBSCRIBE'
  local name = (is_news and ARGV[1] or KEYS[1]) .. 'any'
  if not redis.acl_check_cmd(ARGV[i], name, name) then
    refused[#refused + 1] = ARGV[i]
  end
end
return refused
