// For the files that hold FFI handlers.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include "varax.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace varax {

// Names of all handlers, in the order of registration.
void remember(const char* name);
struct Remembered {
  explicit Remembered(const char* name) { remember(name); }
};

// Advise the system that what the call writes is large and will all be touched.
void ask_for_large_pages(const XLA_FFI_CallFrame* frame);

// Run task(i) for i in [0, count), on XLA's threads and the caller's. Which thread runs which task is left
// open, so results must not depend on it: split the work by the problem, never by the number of threads.
template <typename Task>
void parallel(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  // Shared, since a helper that comes late may look at it after the caller has left.
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    std::mutex mutex;
    std::condition_variable all;
  };
  auto state = std::make_shared<State>();
  const Task* work = &task;
  auto run = [state, work, count] {
    int64_t mine = 0;
    for (int64_t i; (i = state->next.fetch_add(1)) < count; ++mine) (*work)(i);
    if (mine > 0 && state->done.fetch_add(mine) + mine == count) {
      std::lock_guard<std::mutex> lock(state->mutex);
      state->all.notify_all();
    }
  };
  for (int64_t h = 0; h < helpers; ++h) pool.Schedule(std::decay_t<decltype(run)>(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all.wait(lock, [&] { return state->done.load() == count; });
}

// `binding` with so many more arguments and results of one dtype: at least one. Bindings cannot be moved.
template <ffi::DataType type, int args, int rets, class Binding>
auto with_buffers(Binding&& binding) {
  if constexpr (args == 0 && rets == 1) {
    return std::move(binding).template Ret<ffi::Buffer<type>>();
  } else if constexpr (args == 1 && rets == 0) {
    return std::move(binding).template Arg<ffi::Buffer<type>>();
  } else if constexpr (args > 0) {
    return with_buffers<type, args - 1, rets>(std::move(binding).template Arg<ffi::Buffer<type>>());
  } else {
    return with_buffers<type, 0, rets - 1>(std::move(binding).template Ret<ffi::Buffer<type>>());
  }
}

}  // namespace varax

// VARAX_PICK_OF(T, f): f_f32 or f_f64 as T is, the one that this machine runs.
#define VARAX_PICK_OF(T, f)                                  \
  [] {                                                       \
    if constexpr (sizeof(T) == 4) return VARAX_PICK(f##_f32); \
    else return VARAX_PICK(f##_f64);                         \
  }()

// VARAX_HANDLER(name, function, binding): an exported handler that Python finds by its name.
#define VARAX_HANDLER(name, function, ...)                                              \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame* frame); \
  XLA_FFI_DEFINE_HANDLER(name##_handler_, function, __VA_ARGS__);                       \
  XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) {                                       \
    ::varax::ask_for_large_pages(frame);                                                \
    return name##_handler_(frame);                                                      \
  }                                                                                     \
  static const ::varax::Remembered name##_remembered_(#name)
