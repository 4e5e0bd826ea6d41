// Stand-in of our own for @vates/task, which the registry does not serve: tasks nested through the asynchronous
// context, whose events go to the root's `onProgress` in the form of xo-proxy-api.md §3.

import { AsyncLocalStorage } from 'node:async_hooks'
import { randomUUID } from 'node:crypto'

const current = new AsyncLocalStorage()

const describe = error =>
  error instanceof Error
    ? { ...error, message: error.message, name: error.name, stack: error.stack, code: error.code, errors: error.errors?.map(describe) }
    : error

export class Task {
  static get current() {
    return current.getStore()
  }
  static get abortSignal() {
    return Task.current?.abortSignal
  }
  static info(message, data) {
    Task.current?.info(message, data)
  }
  static warning(message, data) {
    Task.current?.warning(message, data)
  }
  static set(name, value) {
    Task.current?.set(name, value)
  }
  static run(options, fn) {
    return new Task(options).run(fn)
  }
  /** Options may depend on the arguments of the wrapped function. */
  static wrap(options, fn) {
    return function (...args) {
      const resolved = typeof options === 'function' ? options.apply(this, args) : options
      return Task.run(resolved, () => fn.apply(this, args))
    }
  }

  #abort = new AbortController()
  #emit
  #parent
  #properties
  #started = false

  id = randomUUID()
  status = 'pending'

  constructor({ properties = {}, onProgress } = {}) {
    this.#properties = properties
    this.#parent = Task.current
    const root = this.#parent
    this.#emit = onProgress ?? (root === undefined ? () => {} : event => root.forward(event))
  }

  get abortSignal() {
    return this.#abort.signal
  }
  abort(reason) {
    this.#abort.abort(reason)
  }

  forward(event) {
    this.#emit(event)
  }
  #event(type, fields) {
    this.#emit({ ...fields, id: this.id, timestamp: Date.now(), type })
  }

  start() {
    if (!this.#started) {
      this.#started = true
      this.#event('start', { parentId: this.#parent?.id, properties: this.#properties })
    }
  }
  #end(status, result) {
    if (this.status === 'pending') {
      this.status = status
      this.#event('end', { status, result })
    }
  }
  success(result) {
    this.#end('success', result)
  }
  failure(error) {
    this.#end('failure', describe(error))
  }
  info(message, data) {
    this.#event('info', { message, data })
  }
  warning(message, data) {
    this.#event('warning', { message, data })
  }
  set(name, value) {
    this.#event('property', { name, value })
  }

  /** Runs `fn` in the task, which it ends only by failing. */
  async runInside(fn) {
    this.start()
    try {
      return await current.run(this, fn)
    } catch (error) {
      this.failure(error)
      throw error
    }
  }
  /** Runs `fn` in the task and ends it. */
  async run(fn) {
    const result = await this.runInside(fn)
    this.success(result)
    return result
  }

  wrap(fn) {
    const task = this
    return function (...args) {
      return task.run(() => fn.apply(this, args))
    }
  }
  wrapInside(fn) {
    const task = this
    return function (...args) {
      return task.runInside(() => fn.apply(this, args))
    }
  }
}
