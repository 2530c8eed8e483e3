-- One turn a request, each answer checked. What is asked comes from the environment:
-- BENCH_MESSAGE, BENCH_STREAM ("true"), BENCH_EXPECTED (what each answer must hold), BENCH_TOKEN,
-- BENCH_SESSION ("body" or "query": a new session each, its id there; else none), BENCH_SALT (what no other run has).
local message = os.getenv("BENCH_MESSAGE") or "ping"
local stream = os.getenv("BENCH_STREAM") == "true" and ',"stream":true' or ""
local expected = os.getenv("BENCH_EXPECTED") or '"response":"pong"'
local session = os.getenv("BENCH_SESSION")
local salt = os.getenv("BENCH_SALT") or tostring(os.time())
local headers = {["Content-Type"] = "application/json"}
if os.getenv("BENCH_TOKEN") then
  headers["Authorization"] = "Token " .. os.getenv("BENCH_TOKEN")
end
local threads = {}

function setup(thread)
  thread:set("id", #threads + 1)
  table.insert(threads, thread)
end

function init(args)
  wrong_answers = 0
  counter = 0
end

function request()
  counter = counter + 1
  local path = wrk.path
  local own = ""
  if session == "body" then
    own = string.format(',"session_id":"s-%s-%d-%d"', salt, id, counter)
  elseif session == "query" then
    path = string.format("%s?agent_session_id=s-%s-%d-%d", path, salt, id, counter)
  end
  return wrk.format("POST", path, headers, string.format('{"message":"%s"%s%s}', message, own, stream))
end

function response(status, headers, body)
  if status ~= 200 or not body:find(expected, 1, true) then
    wrong_answers = wrong_answers + 1
  end
end

function done(summary, latency, requests)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  for _, thread in ipairs(threads) do bad = bad + thread:get("wrong_answers") end
  io.write(string.format('RESULT {"requests":%d,"seconds":%.6f,"wrong":%d,"p50_ms":%.4f,"p99_ms":%.4f}\n',
    summary.requests, summary.duration / 1e6, bad, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
