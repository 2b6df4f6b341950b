// The chains of a batch, as the handlers get them.
#pragma once

#include <string>

#include "handler.h"
#include "hmm.h"

namespace varax {
namespace {

// A chain of a batch: operands of stride 0 are shared.
template <ffi::DataType type>
struct Chains {
  typedef ffi::NativeType<type> T;
  int64_t batch, steps, states;
  HmmBatch<T> all;
  const char* wrong = nullptr;

  Chains(int64_t batch, int64_t steps, int64_t states, bool varying, ffi::Buffer<type> initial,
         ffi::Buffer<type> transitions, ffi::Buffer<type> logs)
      : batch(batch), steps(steps), states(states) {
    const int64_t matrix = states * states * (varying ? std::max<int64_t>(steps - 1, 0) : 1);
    all.first = {steps, states, varying, initial.typed_data(), transitions.typed_data(), logs.typed_data()};
    all.initial_stride = stride(initial.element_count(), states, "initial");
    all.transitions_stride = stride(transitions.element_count(), matrix, "transitions");
    all.log_likelihoods_stride = stride(logs.element_count(), steps * states, "log likelihoods");
  }

  int64_t stride(int64_t count, int64_t each, const char* what) {
    if (count == each * batch) return batch == 1 ? 0 : each;
    if (count != each) wrong = what;
    return 0;
  }

  // Whether they are worth a lane each: many, and of few states.
  bool in_lanes() const { return batch >= kHmmFewest && states <= kHmmLaneStates; }

  // task(from, count) for all chains, so many at once.
  template <class Task>
  void in_groups(ffi::ThreadPool& pool, const Task& task) const {
    parallel(pool, (batch + kHmmLanes - 1) / kHmmLanes, [&](int64_t i) {
      const int64_t from = i * kHmmLanes;
      task(from, std::min<int64_t>(kHmmLanes, batch - from));
    });
  }

  HmmChain<T> operator[](int64_t b) const {
    HmmChain<T> chain = all.first;
    chain.initial += b * all.initial_stride;
    chain.transitions += b * all.transitions_stride;
    chain.log_likelihoods += b * all.log_likelihoods_stride;
    return chain;
  }
};

ffi::Error invalid(const char* operation, const char* what) {
  return ffi::Error::InvalidArgument(std::string(operation) + ": a wrong number of elements in " + what);
}

inline auto hmm_attributes() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int64_t>("batch")
      .Attr<int64_t>("steps")
      .Attr<int64_t>("states")
      .Attr<bool>("varying");
}

}  // namespace
}  // namespace varax
