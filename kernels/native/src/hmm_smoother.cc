// FFI handler of the smoother's adjoint; the smoother itself is the filter and its adjoint.
#include "hmm_chains.h"

namespace varax {
namespace {

template <ffi::DataType type>
ffi::Error smoother_adjoint(ffi::ThreadPool pool, int64_t batch, int64_t steps, int64_t states, bool varying,
                            ffi::Buffer<type> initial, ffi::Buffer<type> transitions, ffi::Buffer<type> logs,
                            ffi::Buffer<type> filtered, ffi::Buffer<type> shift, ffi::Buffer<type> scale,
                            ffi::Buffer<type> evidence_bar, ffi::Buffer<type> smoothed_bar,
                            ffi::Buffer<type> pairs_bar, ffi::ResultBuffer<type> initial_bar,
                            ffi::ResultBuffer<type> transitions_bar, ffi::ResultBuffer<type> logs_bar) {
  typedef ffi::NativeType<type> T;
  const Chains<type> chains(batch, steps, states, varying, initial, transitions, logs);
  if (chains.wrong != nullptr) return invalid("hmm_smoother's adjoint", chains.wrong);
  const int64_t rows = batch * steps;
  const int64_t matrix = states * states * (varying ? std::max<int64_t>(steps - 1, 0) : 1);
  const int64_t along = smoothed_bar.element_count(), pairs = pairs_bar.element_count();
  if (int64_t(filtered.element_count()) != rows * states || int64_t(shift.element_count()) != rows ||
      int64_t(scale.element_count()) != rows || int64_t(evidence_bar.element_count()) != batch ||
      (along != 0 && along != rows * states) || (pairs != 0 && pairs != batch * matrix))
    return invalid("hmm_smoother's adjoint", "a residual or cotangent");
  if (int64_t(initial_bar->element_count()) != batch * states ||
      int64_t(transitions_bar->element_count()) != batch * matrix ||
      int64_t(logs_bar->element_count()) != rows * states)
    return invalid("hmm_smoother's adjoint", "a result");
  const HmmSmootherAdjoint<T> all{filtered.typed_data(),
                                  shift.typed_data(),
                                  scale.typed_data(),
                                  evidence_bar.typed_data(),
                                  along != 0 ? smoothed_bar.typed_data() : nullptr,
                                  pairs != 0 ? pairs_bar.typed_data() : nullptr,
                                  initial_bar->typed_data(),
                                  transitions_bar->typed_data(),
                                  logs_bar->typed_data()};
  if (chains.in_lanes()) {
    auto run = VARAX_PICK_OF(T, hmm_lanes_smoother_adjoint);
    chains.in_groups(pool, [&](int64_t from, int64_t count) { run(chains.all, all, from, count); });
    return ffi::Error::Success();
  }
  auto run = VARAX_PICK_OF(T, hmm_smoother_adjoint);
  parallel(pool, batch, [&](int64_t b) {
    HmmSmootherAdjoint<T> io = all;
    const int64_t row = b * steps;
    io.filtered += row * states, io.shift += row, io.scale += row, io.evidence_bar += b;
    if (io.smoothed_bar != nullptr) io.smoothed_bar += row * states;
    if (io.pairs_bar != nullptr) io.pairs_bar += b * matrix;
    io.initial_bar += b * states, io.transitions_bar += b * matrix, io.log_likelihoods_bar += row * states;
    run(chains[b], io);
  });
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto binding() {
  return with_buffers<type, 9, 3>(hmm_attributes());
}

}  // namespace

VARAX_HANDLER(varax_hmm_smoother_adjoint_f32, smoother_adjoint<ffi::F32>, binding<ffi::F32>());
VARAX_HANDLER(varax_hmm_smoother_adjoint_f64, smoother_adjoint<ffi::F64>, binding<ffi::F64>());

}  // namespace varax
