// Vercel AI SDK with @ai-sdk/openai-compatible.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { embed, generateText, jsonSchema, streamText, tool } from 'ai';
import { API_KEY, BASE_URL, MODEL, check, expect, failure, main, words } from './probe.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createOpenAICompatible({ name: 'site', baseURL: BASE_URL, apiKey: API_KEY, includeUsage: true });
const told = { model: provider(MODEL), maxOutputTokens: 5, maxRetries: 0 };
const schema = jsonSchema({
  type: 'object', properties: { city: { type: 'string' }, days: { type: 'integer' } }, required: ['city', 'days'],
});

check('generate', async () => {
  const got = await generateText({ ...told, prompt: 'hello' });
  expect(got.text === words('hello', 5), 'our words');
  return { text: got.text, finish: got.finishReason, out: got.usage.outputTokens };
});
check('stream', async () => {
  const got = streamText({ ...told, prompt: 'hello' });
  let text = '';
  for await (const piece of got.textStream) text += piece;
  expect(text === words('hello', 5), 'our words');
  const usage = await got.usage;
  return { text, finish: await got.finishReason, out: usage.outputTokens };
});
check('tools', async () => {
  const weather = tool({ description: 'w', inputSchema: schema });
  const got = await generateText({ ...told, prompt: 't', tools: { weather } });
  return got.toolCalls.map((c) => [c.toolName, c.input]);
});
check('embed', async () => (await embed({ model: provider.embeddingModel?.(MODEL) ?? provider.textEmbeddingModel(MODEL), value: 'a' })).embedding);
check('error_from_the_engine_400', async () => failure(() => generateText({ ...told, prompt: '@fault=400' })));
check('broken_stream_is_visible', async () => {
  let seen = null;
  const got = streamText({ ...told, prompt: '@fault=reset @at=2', onError: ({ error }) => { seen = error; } });
  let text = '';
  try {
    for await (const piece of got.textStream) text += piece;
  } catch (error) {
    seen = error;
  }
  expect(seen !== null || text !== words('@fault=reset @at=2', 5), 'an error');
  return seen !== null;
});
check('only_gateway_cut_is_never_whole', async () => {
  let seen = null;
  const got = streamText({ ...told, prompt: '@fault=cut @at=2', onError: ({ error }) => { seen = error; } });
  try {
    for await (const _ of got.textStream);
  } catch (error) {
    seen = error;
  }
  expect(seen !== null, 'an error');
  return true;
});

await main();
