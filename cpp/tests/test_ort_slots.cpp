// The places of functions that we declare are those of the official header, where it is installed.

#include <doctest/doctest.h>

#include <cstddef>

#include "ort_api.h"

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#define LIT_SFT_HAS_HEADER
#elif __has_include(<onnxruntime/onnxruntime_c_api.h>)
#include <onnxruntime/onnxruntime_c_api.h>
#define LIT_SFT_HAS_HEADER
#endif

#ifdef LIT_SFT_HAS_HEADER
TEST_CASE("slots are those of the official header") {
#define CHECK_SLOT(slot, name, result, parameters) CHECK(offsetof(OrtApi, name) == (slot) * sizeof(void*));
    LIT_SFT_ORT_FUNCTIONS(CHECK_SLOT)
#undef CHECK_SLOT
}
#endif

TEST_CASE("each function stands at the place of its own name") {
    void* table[256];
    for (std::size_t slot = 0; slot < 256; ++slot) table[slot] = reinterpret_cast<void*>(slot + 1);
    const lit_sft::ort::Api api(table);
#define CHECK_PLACE(slot, name, result, parameters) CHECK(reinterpret_cast<std::size_t>(api.name) == (slot) + 1);
    LIT_SFT_ORT_FUNCTIONS(CHECK_PLACE)
#undef CHECK_PLACE
}
