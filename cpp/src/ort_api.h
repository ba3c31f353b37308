#pragma once

// ONNX Runtime's C API, as far as it is used, declared by us: nothing but a library is needed to run, no headers to
// build.
//
// The library hands out a table of functions that only grows at its end, so that the place of a function never changes.
// The test "slots are those of the official header" compares the places where that header is installed.

#include <cstddef>
#include <cstdint>

namespace lit_sft::ort {

// Opaque to us.
struct Env;
struct Status;
struct MemoryInfo;
struct IoBinding;
struct Session;
struct SessionOptions;
struct RunOptions;
struct Value;
struct TypeInfo;
struct TensorInfo;
struct Allocator;

enum class ElementType : int { float32 = 1, int32 = 6, int64 = 7, float16 = 10 };
enum class LogLevel : int { verbose, info, warning, error, fatal };
constexpr int kArenaAllocator = 1;
constexpr int kDefaultMemory = 0;
constexpr std::uint32_t kApiVersion = 16;  // of which all functions below are

// Place in the table, name, result, parameters.
// clang-format off
#define LIT_SFT_ORT_FUNCTIONS(FUNCTION)                                                                                \
    FUNCTION(2, GetErrorMessage, const char*, (const Status*))                                                         \
    FUNCTION(3, CreateEnv, Status*, (LogLevel, const char*, Env**))                                                    \
    FUNCTION(7, CreateSession, Status*, (const Env*, const char*, const SessionOptions*, Session**))                   \
    FUNCTION(10, CreateSessionOptions, Status*, (SessionOptions**))                                                    \
    FUNCTION(24, SetIntraOpNumThreads, Status*, (SessionOptions*, int))                                                \
    FUNCTION(30, SessionGetInputCount, Status*, (const Session*, std::size_t*))                                        \
    FUNCTION(31, SessionGetOutputCount, Status*, (const Session*, std::size_t*))                                       \
    FUNCTION(33, SessionGetInputTypeInfo, Status*, (const Session*, std::size_t, TypeInfo**))                          \
    FUNCTION(34, SessionGetOutputTypeInfo, Status*, (const Session*, std::size_t, TypeInfo**))                         \
    FUNCTION(36, SessionGetInputName, Status*, (const Session*, std::size_t, Allocator*, char**))                      \
    FUNCTION(37, SessionGetOutputName, Status*, (const Session*, std::size_t, Allocator*, char**))                     \
    FUNCTION(49, CreateTensorWithDataAsOrtValue, Status*,                                                              \
             (const MemoryInfo*, void*, std::size_t, const std::int64_t*, std::size_t, ElementType, Value**))          \
    FUNCTION(55, CastTypeInfoToTensorInfo, Status*, (const TypeInfo*, const TensorInfo**))                             \
    FUNCTION(60, GetTensorElementType, Status*, (const TensorInfo*, ElementType*))                                     \
    FUNCTION(61, GetDimensionsCount, Status*, (const TensorInfo*, std::size_t*))                                       \
    FUNCTION(62, GetDimensions, Status*, (const TensorInfo*, std::int64_t*, std::size_t))                              \
    FUNCTION(69, CreateCpuMemoryInfo, Status*, (int, int, MemoryInfo**))                                               \
    FUNCTION(76, AllocatorFree, Status*, (Allocator*, void*))                                                          \
    FUNCTION(78, GetAllocatorWithDefaultOptions, Status*, (Allocator**))                                               \
    FUNCTION(92, ReleaseEnv, void, (Env*))                                                                             \
    FUNCTION(93, ReleaseStatus, void, (Status*))                                                                       \
    FUNCTION(94, ReleaseMemoryInfo, void, (MemoryInfo*))                                                               \
    FUNCTION(95, ReleaseSession, void, (Session*))                                                                     \
    FUNCTION(96, ReleaseValue, void, (Value*))                                                                         \
    FUNCTION(98, ReleaseTypeInfo, void, (TypeInfo*))                                                                   \
    FUNCTION(100, ReleaseSessionOptions, void, (SessionOptions*))                                                      \
    FUNCTION(133, RunWithBinding, Status*, (Session*, const RunOptions*, const IoBinding*))                            \
    FUNCTION(134, CreateIoBinding, Status*, (Session*, IoBinding**))                                                   \
    FUNCTION(135, ReleaseIoBinding, void, (IoBinding*))                                                                \
    FUNCTION(136, BindInput, Status*, (IoBinding*, const char*, const Value*))                                         \
    FUNCTION(137, BindOutput, Status*, (IoBinding*, const char*, const Value*))
// clang-format on

/// The functions above.
struct Api {
// NOLINTNEXTLINE(bugprone-macro-parentheses): types and lists of parameters
#define LIT_SFT_DECLARE(slot, name, result, parameters) result(*name) parameters;
    LIT_SFT_ORT_FUNCTIONS(LIT_SFT_DECLARE)
#undef LIT_SFT_DECLARE

    /// @param table of `OrtGetApiBase()->GetApi(kApiVersion)`.
    explicit Api(void* const* table) : GetErrorMessage(nullptr) {
// NOLINTNEXTLINE(bugprone-macro-parentheses): types and lists of parameters
#define LIT_SFT_LOOK_UP(slot, name, result, parameters) name = reinterpret_cast<result(*) parameters>(table[slot]);
        LIT_SFT_ORT_FUNCTIONS(LIT_SFT_LOOK_UP)
#undef LIT_SFT_LOOK_UP
    }
};

/// What the library exports.
struct ApiBase {
    void* const* (*GetApi)(std::uint32_t version);
    const char* (*GetVersionString)();
};

}  // namespace lit_sft::ort
