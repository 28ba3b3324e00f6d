// openai-node.
import OpenAI from 'openai';
import { API_KEY, BASE_URL, MODEL, cancelledWithin, check, expect, failure, main, stats, words } from './probe.mjs';

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, timeout: 20000 });
const user = (content) => [{ role: 'user', content }];
const schema = {
  type: 'object', properties: { city: { type: 'string' }, days: { type: 'integer' } }, required: ['city', 'days'],
  additionalProperties: false,
};
const tools = [{ type: 'function', function: { name: 'weather', parameters: schema } }];
const ask = (text, n = 6, more = {}) =>
  client.chat.completions.create({ model: MODEL, max_tokens: n, messages: user(text), ...more });
async function all(stream) {
  const found = [];
  for await (const chunk of await stream) found.push(chunk);
  return found;
}
const text = (chunks) => chunks.map((c) => c.choices[0]?.delta?.content ?? '').join('');

check('models_list', async () => (await client.models.list()).data.map((m) => m.id));
check('chat_plain', async () => {
  const got = await ask('hello');
  expect(got.choices[0].message.content === words('hello', 6), 'our words');
  return got;
});
check('chat_unicode', async () => {
  const said = 'Grüße, 你好, 👩‍🚀';
  const got = await ask(said);
  expect(got.choices[0].message.content === words(said, 6), 'our words');
  return got;
});
check('stream_plain', async () => {
  const chunks = await all(ask('s', 6, { stream: true }));
  expect(text(chunks) === words('s', 6), 'our words');
  expect(!chunks.some((c) => c.usage), 'no usage that nobody asked for');
  return chunks;
});
check('stream_usage_once', async () => {
  const chunks = await all(ask('s', 6, { stream: true, stream_options: { include_usage: true } }));
  expect(chunks.filter((c) => c.usage).length === 1, 'usage once');
  return chunks;
});
check('stream_long', async () => {
  expect(text(await all(ask('long', 800, { stream: true }))) === words('long', 800), 'all words');
  return true;
});
check('tools_plain', async () => (await ask('t', 6, { tools })).choices[0].message.tool_calls[0].function);
check('tools_streamed', async () => all(ask('t', 6, { tools, stream: true })));
check('schema', async () => {
  const form = { type: 'json_schema', json_schema: { name: 'w', schema, strict: true } };
  return JSON.parse((await ask('j', 64, { response_format: form })).choices[0].message.content);
});
check('completions', async () => client.completions.create({ model: MODEL, prompt: 'l', max_tokens: 3 }));
check('embeddings', async () => client.embeddings.create({ model: MODEL, input: ['a', 'b'], encoding_format: 'float' }));
check('responses_plain', async () => {
  const got = await client.responses.create({ model: MODEL, input: 'r', max_output_tokens: 3 });
  expect(got.output_text === words('r', 3), 'our words');
  return got;
});
check('responses_streamed', async () =>
  all(client.responses.create({ model: MODEL, input: 'r', max_output_tokens: 3, stream: true })));
check('error_unknown_model', async () =>
  failure(() => client.chat.completions.create({ model: 'nobody', messages: user('x') })));
check('error_from_the_engine_400', async () => failure(() => ask('@fault=400')));
check('broken_stream', async () => (await failure(() => all(ask('@fault=reset @at=3', 6, { stream: true })))).raised !== null);
check('broken_stream_error_event', async () =>
  (await failure(() => all(ask('@fault=errchunk @at=3', 6, { stream: true })))).raised !== null);
check('cancel_is_seen_at_the_engine', async () => {
  const before = (await stats()).cancelled;
  const stream = await ask('@gap_ms=100 c', 100, { stream: true });
  let n = 0;
  for await (const _ of stream) if (++n === 4) break;
  expect(await cancelledWithin(2.5, before), 'cancelled within 2.5 s');
  return true;
});
check('no_cross_talk_of_64_streams', async () => {
  const one = async (i) => {
    const said = `stream ${i} @gap_ms=2`;
    expect(text(await all(ask(said, 30, { stream: true }))) === words(said, 30), `words of stream ${i}`);
  };
  await Promise.all(Array.from({ length: 64 }, (_, i) => one(i)));
  return true;
});
check('only_gateway_401', async () => {
  const wrong = new OpenAI({ baseURL: BASE_URL, apiKey: 'sk-wrong', maxRetries: 0 });
  const got = await failure(() => wrong.chat.completions.create({ model: MODEL, messages: user('x') }));
  expect(got.raised === 'AuthenticationError' && got.status === 401, JSON.stringify(got));
  return got;
});
check('only_gateway_cut_is_never_whole', async () => {
  const got = await failure(() => all(ask('@fault=cut @at=3', 6, { stream: true })));
  expect(got.raised === 'APIError', JSON.stringify(got));
  return true;
});

await main();
