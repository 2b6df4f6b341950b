// FFI handlers of the most likely path and of posterior paths.
#include "hmm_chains.h"

namespace varax {
namespace {

template <ffi::DataType type>
ffi::Error viterbi(ffi::ThreadPool pool, int64_t batch, int64_t steps, int64_t states, bool varying,
                   ffi::Buffer<type> initial, ffi::Buffer<type> transitions, ffi::Buffer<type> logs,
                   ffi::ResultBuffer<ffi::S32> path, ffi::ResultBuffer<type> score) {
  const Chains<type> chains(batch, steps, states, varying, initial, transitions, logs);
  if (chains.wrong != nullptr) return invalid("hmm_viterbi", chains.wrong);
  if (int64_t(path->element_count()) != batch * steps || int64_t(score->element_count()) != batch)
    return invalid("hmm_viterbi", "a result");
  parallel(pool, batch, [&](int64_t b) {
    int32_t* to = path->typed_data() + b * steps;
    if constexpr (type == ffi::F32) {
      VARAX_PICK(hmm_viterbi_f32)(chains[b], to, score->typed_data() + b);
    } else {
      VARAX_PICK(hmm_viterbi_f64)(chains[b], to, score->typed_data() + b);
    }
  });
  return ffi::Error::Success();
}

// `filtered` stands where a chain has its log likelihoods.
template <ffi::DataType type>
ffi::Error draw(ffi::ThreadPool pool, int64_t batch, int64_t steps, int64_t states, bool varying,
                ffi::Buffer<type> filtered, ffi::Buffer<type> transitions, ffi::Buffer<type> uniforms,
                ffi::ResultBuffer<ffi::S32> path) {
  typedef ffi::NativeType<type> T;
  Chains<type> chains(batch, steps, states, varying, filtered, transitions, filtered);
  chains.wrong = nullptr;  // there is no initial distribution
  chains.all.log_likelihoods_stride = chains.stride(filtered.element_count(), steps * states, "filtered");
  chains.all.initial_stride = 0;
  chains.stride(transitions.element_count(), states * states * (varying ? std::max<int64_t>(steps - 1, 0) : 1),
                "transitions");
  const int64_t apart = chains.stride(uniforms.element_count(), steps, "uniforms");
  if (chains.wrong != nullptr) return invalid("hmm_sample", chains.wrong);
  if (int64_t(path->element_count()) != batch * steps) return invalid("hmm_sample", "the result");
  parallel(pool, batch, [&](int64_t b) {
    const HmmChain<T> chain = chains[b];
    const T* u = uniforms.typed_data() + b * apart;
    int32_t* to = path->typed_data() + b * steps;
    if constexpr (type == ffi::F32) {
      VARAX_PICK(hmm_draw_f32)(chain, chain.log_likelihoods, u, to);
    } else {
      VARAX_PICK(hmm_draw_f64)(chain, chain.log_likelihoods, u, to);
    }
  });
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto draw_binding() {
  return with_buffers<type, 3, 0>(hmm_attributes()).template Ret<ffi::Buffer<ffi::S32>>();
}

template <ffi::DataType type>
auto viterbi_binding() {
  return with_buffers<type, 0, 1>(draw_binding<type>());
}

}  // namespace

VARAX_HANDLER(varax_hmm_viterbi_f32, viterbi<ffi::F32>, viterbi_binding<ffi::F32>());
VARAX_HANDLER(varax_hmm_viterbi_f64, viterbi<ffi::F64>, viterbi_binding<ffi::F64>());
VARAX_HANDLER(varax_hmm_draw_f32, draw<ffi::F32>, draw_binding<ffi::F32>());
VARAX_HANDLER(varax_hmm_draw_f64, draw<ffi::F64>, draw_binding<ffi::F64>());

}  // namespace varax
