// FFI handlers of the filter and its adjoint: shapes are checked here, chains are spread over threads.
#include "hmm_chains.h"

namespace varax {
namespace {

template <ffi::DataType type>
ffi::Error filter(ffi::ThreadPool pool, int64_t batch, int64_t steps, int64_t states, bool varying, bool save,
                  ffi::Buffer<type> initial, ffi::Buffer<type> transitions, ffi::Buffer<type> logs,
                  ffi::ResultBuffer<type> evidence, ffi::ResultBuffer<type> filtered,
                  ffi::ResultBuffer<type> shift, ffi::ResultBuffer<type> scale) {
  typedef ffi::NativeType<type> T;
  const Chains<type> chains(batch, steps, states, varying, initial, transitions, logs);
  if (chains.wrong != nullptr) return invalid("hmm_filter", chains.wrong);
  const int64_t rows = batch * steps, kept = save ? rows : 0;
  if (int64_t(evidence->element_count()) != batch || int64_t(filtered->element_count()) != rows * states ||
      int64_t(shift->element_count()) != kept || int64_t(scale->element_count()) != kept)
    return invalid("hmm_filter", "a result");
  if (chains.in_lanes()) {
    const HmmFiltered<T> all{evidence->typed_data(), filtered->typed_data(), save ? shift->typed_data() : nullptr,
                             save ? scale->typed_data() : nullptr};
    chains.in_groups(pool, [&](int64_t from, int64_t count) {
      if constexpr (type == ffi::F32) {
        VARAX_PICK(hmm_lanes_filter_f32)(chains.all, all, from, count);
      } else {
        VARAX_PICK(hmm_lanes_filter_f64)(chains.all, all, from, count);
      }
    });
    return ffi::Error::Success();
  }
  parallel(pool, batch, [&](int64_t b) {
    const HmmFiltered<T> out{evidence->typed_data() + b, filtered->typed_data() + b * steps * states,
                             save ? shift->typed_data() + b * steps : nullptr,
                             save ? scale->typed_data() + b * steps : nullptr};
    if constexpr (type == ffi::F32) {
      VARAX_PICK(hmm_filter_f32)(chains[b], out);
    } else {
      VARAX_PICK(hmm_filter_f64)(chains[b], out);
    }
  });
  return ffi::Error::Success();
}

template <ffi::DataType type>
ffi::Error adjoint(ffi::ThreadPool pool, int64_t batch, int64_t steps, int64_t states, bool varying,
                   ffi::Buffer<type> initial, ffi::Buffer<type> transitions, ffi::Buffer<type> logs,
                   ffi::Buffer<type> filtered, ffi::Buffer<type> shift, ffi::Buffer<type> scale,
                   ffi::Buffer<type> evidence_bar, ffi::Buffer<type> filtered_bar,
                   ffi::ResultBuffer<type> initial_bar, ffi::ResultBuffer<type> transitions_bar,
                   ffi::ResultBuffer<type> logs_bar) {
  typedef ffi::NativeType<type> T;
  const Chains<type> chains(batch, steps, states, varying, initial, transitions, logs);
  if (chains.wrong != nullptr) return invalid("hmm_filter's adjoint", chains.wrong);
  const int64_t rows = batch * steps;
  const int64_t matrix = states * states * (varying ? std::max<int64_t>(steps - 1, 0) : 1);
  const int64_t bars = filtered_bar.element_count();
  if (int64_t(filtered.element_count()) != rows * states || int64_t(shift.element_count()) != rows ||
      int64_t(scale.element_count()) != rows || int64_t(evidence_bar.element_count()) != batch ||
      (bars != 0 && bars != rows * states))
    return invalid("hmm_filter's adjoint", "a residual or cotangent");
  if (int64_t(initial_bar->element_count()) != batch * states ||
      int64_t(transitions_bar->element_count()) != batch * matrix ||
      int64_t(logs_bar->element_count()) != rows * states)
    return invalid("hmm_filter's adjoint", "a result");
  if (chains.in_lanes()) {
    const HmmAdjoint<T> all{filtered.typed_data(),
                            shift.typed_data(),
                            scale.typed_data(),
                            evidence_bar.typed_data(),
                            bars != 0 ? filtered_bar.typed_data() : nullptr,
                            initial_bar->typed_data(),
                            transitions_bar->typed_data(),
                            logs_bar->typed_data()};
    chains.in_groups(pool, [&](int64_t from, int64_t count) {
      if constexpr (type == ffi::F32) {
        VARAX_PICK(hmm_lanes_adjoint_f32)(chains.all, all, from, count);
      } else {
        VARAX_PICK(hmm_lanes_adjoint_f64)(chains.all, all, from, count);
      }
    });
    return ffi::Error::Success();
  }
  parallel(pool, batch, [&](int64_t b) {
    const int64_t row = b * steps;
    const HmmAdjoint<T> io{filtered.typed_data() + row * states,
                           shift.typed_data() + row,
                           scale.typed_data() + row,
                           evidence_bar.typed_data() + b,
                           bars != 0 ? filtered_bar.typed_data() + row * states : nullptr,
                           initial_bar->typed_data() + b * states,
                           transitions_bar->typed_data() + b * matrix,
                           logs_bar->typed_data() + row * states};
    if constexpr (type == ffi::F32) {
      VARAX_PICK(hmm_adjoint_f32)(chains[b], io);
    } else {
      VARAX_PICK(hmm_adjoint_f64)(chains[b], io);
    }
  });
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto filter_binding() {
  return with_buffers<type, 3, 4>(hmm_attributes().template Attr<bool>("save"));
}

template <ffi::DataType type>
auto adjoint_binding() {
  return with_buffers<type, 8, 3>(hmm_attributes());
}

}  // namespace

VARAX_HANDLER(varax_hmm_filter_f32, filter<ffi::F32>, filter_binding<ffi::F32>());
VARAX_HANDLER(varax_hmm_filter_f64, filter<ffi::F64>, filter_binding<ffi::F64>());
VARAX_HANDLER(varax_hmm_adjoint_f32, adjoint<ffi::F32>, adjoint_binding<ffi::F32>());
VARAX_HANDLER(varax_hmm_adjoint_f64, adjoint<ffi::F64>, adjoint_binding<ffi::F64>());

}  // namespace varax
