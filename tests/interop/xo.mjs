// XO's own engine as a judge. One request (JSON) on standard input, one answer (JSON) on standard output.
//
//   pool     {pool}                                          what XO sees of a pool
//   backup   {pool, remote, vm, job, schedule, settings}     one run; the answer tells failures, warnings, how disks went
//   points   {remote, vm}                                    restore points of a VM as XO lists them
//   restore  {pool, remote, point, sr}                       a restore; `point` is the path of the metadata
//   read     {remote, disk, output}                          content of a disk with its whole chain, as a sparse raw file
//   clean    {remote, vm}                                    XO's clean-up of a VM directory with merge and removal
//
// pool: {url, username, password}; remote: {id, path, vhdDirectory}.
//
// Traps of this mix of packages (reference/xo-engine-from-npm.md) that show here:
// - vhd-lib 4.15 ignores the unique ids and parents the engine hands to its writers; Adapter sets them afterwards.
// - xo-remote-parser 0.5 knows no options: it takes `?useVhdDirectory=true` for a part of the path. The handler is told
//   apart from its URL.
// - undici dies on an assertion (`!this.paused`) when an export closes at its last byte; the lab waits a little.
// - xo:backup:exported and the prune of snapshots rely on XO's event cache: a pool that delivers no events hangs it.

import { open, readFile } from 'node:fs/promises'

import Disposable from 'promise-toolbox/Disposable'
import { createRunner } from '@xen-orchestra/backups/Backup.mjs'
import { ImportVmBackup } from '@xen-orchestra/backups/ImportVmBackup.mjs'
import { RemoteAdapter } from '@xen-orchestra/backups/RemoteAdapter.mjs'
import { openDiskChain } from '@xen-orchestra/backup-archive/disks'
import { getHandler } from '@xen-orchestra/fs'
import { Task } from '@vates/task'
import { Xapi } from '@xen-orchestra/xapi'
import { openVhd } from 'vhd-lib'

// Whatever XO logs must not get between the answer and its reader.
console.log = console.info = console.debug = console.error

class Adapter extends RemoteAdapter {
  async writeVhd(path, disk, options = {}) {
    const written = await super.writeVhd(path, disk, options)
    const { uuid, parentUuid, parentPath } = options
    await Disposable.use(openVhd(this.handler, path, { flags: 'r+' }), async vhd => {
      await vhd.readHeaderAndFooter()
      // The footer of a file stands behind the last block, which only the table tells.
      await vhd.readBlockAllocationTable()
      if (uuid !== undefined) {
        vhd.footer.uuid = uuid
      }
      if (parentUuid !== undefined) {
        vhd.header.parentUuid = parentUuid
        vhd.header.parentUnicodeName = parentPath
      }
      await vhd.writeHeader()
      await vhd.writeFooter()
    })
    // For directories vhd-lib 4.15 tells no size either, and the metadata would say `null`.
    return written ?? disk.getNbGeneratedBlock() * disk.getBlockSize()
  }
}

const CONFIG = {
  dirMode: 0o700,
  snapshotNameLabelTpl: '[XO Backup {job.name}] {vm.name_label}',
  vhdDirectoryCompression: 'brotli',
  writeBlockConcurrency: 16,
}

// The classes XO's proxy watches (xapi-streams.md §1.3).
const WATCHED = ['network', 'PIF', 'pool', 'SR', 'task', 'VBD', 'VDI', 'VIF', 'VM', 'VM_guest_metrics']

const withXapi = async ({ url, username, password }, fn) => {
  const xapi = new Xapi({
    allowUnauthorized: true,
    auth: { user: username, password },
    url,
    vdiDestroyRetryWhenInUse: { delay: 200, tries: 50 },
    watchedTypes: WATCHED,
  })
  await xapi.connect()
  try {
    await xapi.objectsFetched
    return await fn(xapi)
  } finally {
    await xapi.disconnect()
  }
}

const withAdapter = async ({ id, path, vhdDirectory = false }, fn) => {
  const handler = getHandler({ id, name: 'judge', url: `file://${path}` })
  handler._remote.useVhdDirectory = vhdDirectory
  await handler.sync()
  try {
    return await fn(new Adapter(handler, CONFIG))
  } finally {
    await handler.forget()
  }
}

/** Runs `fn` in a task and tells what its events say. */
const watch = async (name, fn) => {
  const starts = new Map()
  const failures = []
  const warnings = []
  const infos = []
  const onProgress = event => {
    const task = starts.get(event.id)?.properties?.name
    if (event.type === 'start') {
      starts.set(event.id, event)
    } else if (event.type === 'end' && event.status === 'failure') {
      failures.push({ task, error: event.result?.message ?? String(event.result), code: event.result?.code, stack: event.result?.stack })
    } else if (event.type === 'warning') {
      warnings.push({ task, message: event.message, error: event.data?.error?.message })
    } else if (event.type === 'info') {
      infos.push({ task, message: event.message })
    }
  }
  let result
  try {
    result = await Task.run({ properties: { name }, onProgress }, fn)
  } catch (error) {
    if (failures.length === 0) {
      failures.push({ task: name, error: error.message, stack: error.stack })
    }
  }
  const exports = [...starts.values()].filter(_ => _.properties?.name === 'export').map(_ => ({ isFull: _.properties.isFull }))
  return { exports, failures, infos, result, warnings }
}

const commands = {
  pool: ({ pool }) =>
    withXapi(pool, async xapi => ({
      pool: xapi.pool.name_label,
      vms: Object.values(xapi.objects.all)
        .filter(_ => _.$type === 'VM' && !_.is_a_template && !_.is_a_snapshot && !_.is_control_domain)
        .map(_ => ({ uuid: _.uuid, name: _.name_label, disks: _.$VBDs.filter(_ => _.type === 'Disk').map(_ => _.$VDI?.uuid) })),
    })),

  backup: ({ pool, remote, vm, job, schedule, settings }) =>
    withXapi(pool, xapi =>
      withAdapter(remote, async adapter => {
        const runner = createRunner({
          config: CONFIG,
          getAdapter: async () => new Disposable(() => {}, adapter),
          getConnectedRecord: async (type, uuid) => new Disposable(() => {}, xapi.getRecordByUuid(type, uuid)),
          job: {
            compression: '',
            name: 'interop',
            ...job,
            remotes: { id: remote.id },
            // Otherwise merges go to a process that outlives the run.
            settings: { '': { mergeBackupsSynchronously: true }, [schedule]: settings },
            srs: { id: { __or: [] } },
            type: 'backup',
            vms: { id: vm },
          },
          schedule: { id: schedule },
        })
        const outcome = await watch('backup run', () => runner.run())
        return { ...outcome, points: await describePoints(adapter, vm) }
      })
    ),

  points: ({ remote, vm }) => withAdapter(remote, adapter => describePoints(adapter, vm)),

  restore: ({ pool, remote, point, sr, settings = {} }) =>
    withXapi(pool, xapi =>
      withAdapter(remote, async adapter => {
        const metadata = await adapter.readVmBackupMetadata(point)
        const restore = new ImportVmBackup({ adapter, metadata, settings, srUuid: sr, xapi })
        return watch('restore', () => restore.run())
      })
    ),

  read: ({ remote, disk: path, output }) =>
    withAdapter(remote, async ({ handler }) => {
      const disk = await openDiskChain({ handler, path })
      const file = await open(output, 'w')
      let blocks = 0
      try {
        await file.truncate(disk.getVirtualSize())
        const size = disk.getBlockSize()
        for await (const { index, data } of disk.diskBlocks()) {
          const left = disk.getVirtualSize() - index * size
          await file.write(data, 0, Math.min(data.length, left), index * size)
          blocks++
        }
      } finally {
        await file.close()
        await disk.close()
      }
      return { blocks, size: disk.getVirtualSize() }
    }),

  clean: ({ remote, vm }) =>
    withAdapter(remote, async adapter => {
      const warnings = []
      const logWarn = (message, data) => warnings.push({ message, error: data?.error?.message, path: data?.path })
      await adapter.cleanVm(`xo-vm-backups/${vm}`, { fixMetadata: true, lock: true, logInfo() {}, logWarn, merge: true, remove: true })
      return { warnings, points: await describePoints(adapter, vm) }
    }),
}

const describePoints = async (adapter, vm) =>
  (await adapter.listVmBackups(vm)).map(_ => ({
    differencing: _.isVhdDifferencing,
    disks: Object.fromEntries(Object.entries(_.vhds ?? {}).map(([ref, path]) => [_.vdis[ref].uuid, path])),
    file: _._filename,
    jobId: _.jobId,
    mode: _.mode,
    size: _.size,
    timestamp: _.timestamp,
    xva: _.xva,
  }))

const name = process.argv[2]
const command = commands[name]
if (command === undefined) {
  console.error(`usage: node xo.mjs ${Object.keys(commands).join('|')} < request.json`)
  process.exit(2)
}
try {
  const answer = await command(JSON.parse(await readFile('/dev/stdin', 'utf8')))
  // XO leaves timers behind; whoever asked waits for the answer, not for them.
  process.stdout.write(JSON.stringify(answer) + '\n', () => process.exit(0))
} catch (error) {
  console.error(error)
  process.exit(1)
}
