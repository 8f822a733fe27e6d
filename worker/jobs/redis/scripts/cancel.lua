-- End a job without images.

if is_live(read(ARGV[2], 'state').state) then
  give_up(ARGV[2], ARGV[3])
end
