/** The helpers of tests of rollouts, against usr2: what they count, and that they see what is to be seen. */
import t from 'tap'
import { clientsOf, deploysIn, expectNoneLost } from '../helpers/deploys.ts'
import { freePort } from '../helpers/tmp.ts'
import { startUsr2 } from '../helpers/usr2.ts'

t.test('a bad version is told by its answers, and nobody is lost', async (t) => {
  const port = await freePort(t)
  const deploys = deploysIn(t)
  deploys.to('healthy', '1.0.0')
  const usr2 = startUsr2(t, {
    entry: deploys.entry,
    cwd: deploys.root,
    flags: ['--workers', '2'],
    env: { PORT: String(port) },
  })
  await usr2.ready()
  const clients = await clientsOf(t, { port })
  await clients.answered('1.0.0', 100)

  deploys.to('fails-a-tenth', '2.0.0')
  t.equal((await usr2.reload()).code, 0)
  await clients.answered('2.0.0', 200)
  deploys.backTo('1.0.0')
  t.match((await usr2.reload()).stdout, /2\.0\.0 -> 1\.0\.0/)
  await clients.answered('1.0.0', 50)

  const result = await clients.stop()
  expectNoneLost(t, result)
  const { '1.0.0': good, '2.0.0': bad } = result.byVersion
  t.equal(good?.errors, 0)
  t.ok(bad !== undefined && bad.errors >= 200 / 10 - 2, `${bad?.errors} errors of ${bad?.ok} and more`)
  t.equal(result.errors, bad?.errors)
  await usr2.stop()
})
