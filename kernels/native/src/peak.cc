#include "peak.h"

#include "handler.h"

namespace {

// out[0]: operations done by all tasks together.
ffi::Error peak(ffi::ThreadPool pool, int64_t steps, int64_t tasks, ffi::ResultBuffer<ffi::F64> out) {
  if (out->element_count() != 1 || tasks < 1 || tasks > 1024) {
    return ffi::Error::InvalidArgument("varax_peak_int8: one result, 1 to 1024 tasks");
  }
  double done[1024];
  varax::parallel(pool, tasks, [&](int64_t i) {
    int32_t sink = static_cast<int32_t>(i);
    done[i] = VARAX_PICK(peak_int8)(steps, &sink) + (sink == 12345 ? 1e-9 : 0.0);
  });
  double sum = 0;
  for (int64_t i = 0; i < tasks; ++i) sum += done[i];
  out->typed_data()[0] = sum;
  return ffi::Error::Success();
}

}  // namespace

VARAX_HANDLER(varax_peak_int8, peak,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Attr<int64_t>("steps")
                  .Attr<int64_t>("tasks")
                  .Ret<ffi::Buffer<ffi::F64>>());
