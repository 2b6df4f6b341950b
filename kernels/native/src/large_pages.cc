// Large pages for results. They are new memory, of which a system gives 4 KiB at the first touch of each: of a
// gradient whose residuals are 40 MB that takes longer than the arithmetic.
#include "handler.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace varax {

void ask_for_large_pages(const XLA_FFI_CallFrame* frame) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(2) << 20;
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return;
  for (int64_t i = 0; i < frame->rets.size; ++i) {
    if (frame->rets.types[i] != XLA_FFI_RetType_BUFFER) continue;
    const auto* result = static_cast<const XLA_FFI_Buffer*>(frame->rets.rets[i]);
    uintptr_t size = ffi::ByteWidth(static_cast<ffi::DataType>(result->dtype));
    for (int64_t axis = 0; axis < result->rank; ++axis) size *= static_cast<uintptr_t>(result->dims[axis]);
    const auto start = reinterpret_cast<uintptr_t>(result->data);
    const uintptr_t first = (start + page - 1) / page * page, last = (start + size) / page * page;
    // Advice: where it is refused, pages are small.
    if (last > first) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)frame;
#endif
}

}  // namespace varax
