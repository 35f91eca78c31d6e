//! Generates the code for `#[task]`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{
    Attribute, Error, Generics, ItemImpl, Result, Type, ext::IdentExt, parse_quote_spanned,
    spanned::Spanned,
};

use crate::{
    attr::{self, Codec, TaskAttr},
    check::{self, TaskFunction},
    methods, run, types,
};

pub(crate) fn task(attr: TokenStream, item: TokenStream) -> TokenStream {
    let block = syn::parse2::<ItemImpl>(item.clone()).ok();
    if let Some(implementation) = block.as_ref().filter(|block| run::is_run(block)) {
        return run::expand(attr, implementation).unwrap_or_else(|error| error.to_compile_error());
    }
    // Emit the function itself even when it is rejected. Without it, each call of the function
    // would be an error too.
    let generated = match &block {
        Some(block) => methods::expand(attr, block),
        None => generate(attr, item.clone()),
    };
    let generated = generated.unwrap_or_else(|error| error.to_compile_error());
    quote!(#item #generated)
}

fn generate(attr: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let attr = TaskAttr::parse(attr)?;
    let function = check::check(item)?;
    let handle = attr.handle.clone().unwrap_or_else(|| function.ident.clone());
    if attr::is_primitive(&handle) {
        let message = format!(
            "a type named `{handle}` would hide the primitive type: choose another name for the task's type, \
             `#[task(handle = {}Task)]`",
            capitalized(&function.ident),
        );
        return Err(Error::new(handle.span(), message));
    }
    Ok(Task { attr, handle, function, subject: Subject::Function }.expand())
}

fn capitalized(ident: &Ident) -> String {
    let name = ident.unraw().to_string();
    let mut chars = name.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

pub(crate) struct Task {
    pub(crate) attr: TaskAttr,
    pub(crate) handle: Ident,
    pub(crate) function: TaskFunction,
    pub(crate) subject: Subject,
}

/// What the task function is to the user.
pub(crate) enum Subject {
    /// The function that the attribute stands on.
    Function,
    /// A generated function that calls a method. `name` is how messages name the method, behind the
    /// module's path.
    Method {
        name: String,
        /// Whether the first parameter is the method's `self`.
        has_receiver: bool,
        /// What the method does with a managed object: a variant of the registry's `Role`. `None`
        /// if it is no method of a managed type.
        role: Option<Ident>,
    },
}

/// One parameter, in the form that the generated code needs.
struct Argument {
    /// The local variable that holds the argument.
    local: Ident,
    /// The parameter's name in error messages.
    name: String,
    /// The type of the value that is encoded: `T` for `&T`. The compiler infers its lifetimes.
    travels: Type,
    is_reference: bool,
}

impl Task {
    pub(crate) fn expand(&self) -> TokenStream {
        let Task { attr, handle, function, .. } = self;
        let krate = &attr.krate;
        let TaskFunction { attrs, vis, .. } = function;
        let cfgs: Vec<&Attribute> =
            attrs.iter().filter(|attr| attr.path().is_ident("cfg")).collect();
        let hidden = attrs.iter().filter(|attr| is_doc_hidden(attr));
        let struct_doc =
            format!("The task function [`{0}`](fn@{0}) as a type.", function.ident.unraw());

        let constructor = self.constructor();
        let arguments = self.arguments();
        let encode = self.encode(&arguments);
        let task_fn = self.task_fn(&arguments);
        let step_fn = self.step_fn(&arguments);

        quote! {
            #(#cfgs)*
            #(#hidden)*
            #[doc = #struct_doc]
            #[allow(
                dead_code, missing_copy_implementations, missing_debug_implementations, non_camel_case_types,
                unreachable_pub, clippy::empty_structs_with_brackets
            )]
            #vis struct #handle {}

            #(#cfgs)*
            #[allow(
                dead_code, deprecated, non_snake_case, private_interfaces, unreachable_pub, unused_qualifications,
                clippy::all, clippy::pedantic, clippy::nursery
            )]
            const _: () = {
                use #krate::__private as __executor;
                // `Fallback` supplies the constants that `Probe` does not have for a type.
                use __executor::Fallback as _;
                #constructor
                #encode
                #step_fn
                #task_fn
            };
        }
    }

    /// Generates `fn task`, which has the parameters of the function.
    fn constructor(&self) -> TokenStream {
        let Task { handle, function, .. } = self;
        let TaskFunction { attrs, vis, ident, params, .. } = function;
        let (generics, types) = self.named_types();
        let (impl_generics, _, where_clause) = generics.split_for_impl();
        let names: Vec<_> = params.iter().map(|param| &param.ident).collect();
        // Compiler notes ("defined here") and editors then lead to the user's function.
        let task = Ident::new("task", Span::call_site().located_at(ident.span()));
        let kept =
            attrs.iter().filter(|attr| attr.path().is_ident("deprecated") || is_doc_hidden(attr));
        // Do not copy the function's own documentation: its examples would run twice as doc tests.
        let doc = format!("A call of [`{0}`](fn@{0}), to be run somewhere else.", ident.unraw());
        quote! {
            impl #handle {
                #[doc = #doc]
                #(#kept)*
                #[inline]
                #vis fn #task #impl_generics (#(#names: #types),*) -> __executor::Task<#handle, (#(#types,)*)>
                #where_clause
                {
                    __executor::Task::new((#(#names,)*))
                }
            }
        }
    }

    /// The types of the parameters with every lifetime named, and the generics that declare those
    /// lifetimes.
    fn named_types(&self) -> (Generics, Vec<Type>) {
        let mut generics = self.function.generics.clone();
        let types = self.function.params.iter().map(|param| {
            let mut ty = param.ty.clone();
            types::name_lifetimes(&mut ty, &mut generics);
            ty
        });
        let types = types.collect();
        (generics, types)
    }

    fn arguments(&self) -> Vec<Argument> {
        let params = self.function.params.iter().enumerate();
        let arguments = params.map(|(i, param)| {
            let (ty, is_reference) = types::behind_reference(&param.ty);
            let mut travels = ty.clone();
            types::infer_lifetimes(&mut travels);
            Argument {
                // `mixed_site` keeps these names apart from names in the user's code.
                local: format_ident!("__arg{i}", span = Span::mixed_site()),
                name: match &self.subject {
                    Subject::Method { has_receiver: true, .. } if i == 0 => "self".to_owned(),
                    _ => param.ident.unraw().to_string(),
                },
                travels,
                is_reference,
            }
        });
        arguments.collect()
    }

    /// Generates `impl TaskArgs`, which encodes the arguments in the calling process.
    fn encode(&self, arguments: &[Argument]) -> TokenStream {
        let handle = &self.handle;
        let format = self.format();
        let (generics, types) = self.named_types();
        let (impl_generics, _, where_clause) = generics.split_for_impl();
        let out = Ident::new("__out", Span::mixed_site());
        let locals: Vec<_> = arguments.iter().map(|argument| &argument.local).collect();
        let encode = arguments.iter().map(|Argument { local, name, travels, is_reference }| {
            let value = if *is_reference { quote!(*#local) } else { quote!(#local) };
            let way = argument_way(&format, travels);
            quote_spanned! {travels.span()=>
                __executor::encode(#way, #name, #value, #out)?;
            }
        });
        quote! {
            #[automatically_derived]
            impl #impl_generics __executor::TaskArgs<(#(#types,)*)> for #handle #where_clause {
                fn encode_args(
                    (#(#locals,)*): &(#(#types,)*),
                    #out: &mut __executor::Buffer,
                ) -> ::core::result::Result<(), __executor::CodecError> {
                    #(#encode)*
                    ::core::result::Result::Ok(())
                }
            }
        }
    }

    /// Generates `fn with`, which has all parameters but the first, and `impl StepFn`, for a
    /// function that can change a managed value: a plain function whose first parameter is the
    /// value.
    fn step_fn(&self, arguments: &[Argument]) -> Option<TokenStream> {
        let Task { attr, handle, function, subject } = self;
        if !matches!(subject, Subject::Function) {
            return None;
        }
        let (first, rest) = arguments.split_first()?;
        let current = types::behind_reference(&function.params.first()?.ty).0;
        // The server's thread cannot await, it stores values in the default format, and the type of
        // a value that is stored names no lifetime.
        if function.is_async || attr.codec != Codec::Postcard || types::has_lifetimes(current) {
            return None;
        }
        let TaskFunction { attrs, vis, ident, params, .. } = function;
        // A lifetime that only the first parameter has would belong to nothing here.
        if !function.generics.params.is_empty() {
            return None;
        }
        let mut generics = Generics::default();
        let rest_types = function.params.iter().skip(1).map(|param| {
            let mut ty = param.ty.clone();
            types::name_lifetimes(&mut ty, &mut generics);
            ty
        });
        let rest_types: Vec<_> = rest_types.collect();
        let (impl_generics, _, where_clause) = generics.split_for_impl();
        let names: Vec<_> = params.iter().skip(1).map(|param| &param.ident).collect();
        let kept =
            attrs.iter().filter(|attr| attr.path().is_ident("deprecated") || is_doc_hidden(attr));
        let with = Ident::new("with", Span::call_site().located_at(ident.span()));
        let doc = format!(
            "A change of a managed value: [`{0}`](fn@{0}) of the value and these arguments.",
            ident.unraw()
        );
        let format = self.format();
        let out = Ident::new("__out", Span::mixed_site());
        let locals: Vec<_> = rest.iter().map(|argument| &argument.local).collect();
        let encode = rest.iter().map(|Argument { local, name, travels, is_reference }| {
            let value = if *is_reference { quote!(*#local) } else { quote!(#local) };
            let way = argument_way(&format, travels);
            quote_spanned! {travels.span()=>
                __executor::encode(#way, #name, #value, #out)?;
            }
        });
        let current = &first.travels;
        Some(quote! {
            impl #handle {
                #[doc = #doc]
                #(#kept)*
                #[inline]
                #vis fn #with #impl_generics (#(#names: #rest_types),*)
                    -> __executor::Step<#handle, (#(#rest_types,)*)>
                #where_clause
                {
                    __executor::Step::new((#(#names,)*))
                }
            }

            #[automatically_derived]
            impl #impl_generics __executor::StepFn<(#(#rest_types,)*)> for #handle #where_clause {
                type Current = #current;
                fn encode_rest(
                    (#(#locals,)*): &(#(#rest_types,)*),
                    #out: &mut __executor::Buffer,
                ) -> ::core::result::Result<(), __executor::CodecError> {
                    #(#encode)*
                    ::core::result::Result::Ok(())
                }
            }
        })
    }

    /// Generates `impl TaskFn` and the registration, through which the worker finds the function.
    fn task_fn(&self, arguments: &[Argument]) -> TokenStream {
        let Task { attr, handle, function, subject } = self;
        let krate = &attr.krate;
        let ident = &function.ident;
        let format = self.format();
        let span = function.output.as_ref().map_or_else(|| ident.span(), Spanned::span);
        let unit: Type = parse_quote_spanned!(span=> ());
        let returned = function.output.as_ref().unwrap_or(&unit);
        // Whether the type is a `Result`, under any name, is decided by the compiler.
        let outcome = quote_spanned! {span=>
            <#returned as __executor::Outcome<{ <__executor::Probe<#returned>>::IS_RESULT }>>
        };
        let name = match (&attr.name, subject) {
            (Some(name), _) => quote!(#name),
            (None, Subject::Method { name, .. }) => {
                quote!(::core::concat!(::core::module_path!(), "::", #name))
            }
            (None, Subject::Function) => {
                let ident = ident.unraw().to_string();
                quote!(::core::concat!(::core::module_path!(), "::", #ident))
            }
        };
        let travels: Vec<_> = arguments.iter().map(|argument| &argument.travels).collect();
        // `file!` and the others then give the place of the user's function.
        let place_file = quote_spanned!(ident.span()=> ::core::file!());
        let place_line = quote_spanned!(ident.span()=> ::core::line!());
        let place_column = quote_spanned!(ident.span()=> ::core::column!());
        let call = self.call(arguments, returned, span);
        let output_way = way(&format, &quote_spanned!(span=> __Output), span);
        let decode_output = quote_spanned! {span=>
            __executor::decode_output(#output_way, __bytes)
        };
        let output_type = quote_spanned!(span=> type Output = __Output;);
        quote! {
            type __Output = #outcome::Output;
            type __Error = #outcome::Error;

            #[automatically_derived]
            impl __executor::TaskFn for #handle {
                #output_type
                const NAME: &'static ::core::primitive::str = #name;
                const CODEC: __executor::Codec = <#format as __executor::Format>::CODEC;
                fn entry() -> &'static __executor::TaskEntry {
                    &__ENTRY
                }
                fn decode_output(
                    __bytes: &[::core::primitive::u8],
                ) -> ::core::result::Result<__Output, __executor::CodecError> {
                    #decode_output
                }
            }

            fn __signature() -> ::std::string::String {
                __executor::signature(
                    &[#(::core::any::type_name::<#travels>()),*],
                    ::core::any::type_name::<#returned>(),
                    ::core::option_env!("CARGO_PKG_NAME"),
                    ::core::option_env!("CARGO_PKG_VERSION"),
                )
            }

            #[#krate::__private::linkme::distributed_slice(#krate::__private::TASKS)]
            #[linkme(crate = #krate::__private::linkme)]
            static __ENTRY: __executor::TaskEntry = __executor::TaskEntry {
                name: <#handle as __executor::TaskFn>::NAME,
                place: __executor::SourcePlace {
                    file: #place_file,
                    line: #place_line,
                    column: #place_column,
                    module: ::core::module_path!(),
                },
                signature: __signature,
                call: #call,
                registered: __executor::Registered::new(),
            };

            // Registers the function before `main` if it is in another image than the `executor`
            // library, for example in a program that links the library as a `dylib`. `TASKS` lists
            // only the functions of the library's own image.
            #[used]
            #[unsafe(link_section = ".init_array")]
            static __NOTE: extern "C" fn() = {
                extern "C" fn __note() {
                    __executor::note(&__ENTRY)
                }
                __note
            };
        }
    }

    /// Generates the function that runs in the worker: it decodes the arguments, calls the task
    /// function and encodes its result.
    fn call(&self, arguments: &[Argument], returned: &Type, span: Span) -> TokenStream {
        let format = self.format();
        let ident = &self.function.ident;
        let local = |name| Ident::new(name, Span::mixed_site());
        let (bytes, cx, reader, returns) =
            (local("__bytes"), local("__cx"), local("__reader"), local("__returns"));

        let decode = arguments.iter().map(|Argument { local, name, travels, .. }| {
            let way = argument_way(&format, travels);
            quote_spanned! {travels.span()=>
                let #local = match #reader.next(#way, #name) {
                    ::core::result::Result::Ok(decoded) => decoded,
                    ::core::result::Result::Err(failed) => return failed,
                };
            }
        });
        let pass =
            arguments.iter().map(
                |Argument { local, is_reference, .. }| {
                    if *is_reference { quote!(&#local) } else { quote!(#local) }
                },
            );
        let dot_await = self.function.is_async.then(|| quote!(.await));
        let output_way = way(&format, &quote_spanned!(span=> __Output), span);
        // The constants of `Probe<__Error>` say what the error type supports: whether its value can
        // be sent along, and how its sources are found.
        let error = |constant: &str| {
            let constant = Ident::new(constant, span);
            quote_spanned!(span=> <__executor::Probe<__Error>>::#constant)
        };
        let (value, upcasts) =
            (error("VALUE"), ["AS_ERROR", "TO_SYNC_ERROR", "TO_SEND_ERROR", "TO_ERROR"].map(error));
        let reply = quote_spanned! {span=>
            __executor::reply(#output_way, &__output, #cx)
        };
        let failed = quote_spanned! {span=>
            __executor::failed::<#format, __Error, _>(&__error, #value, [#(#upcasts),*], #cx)
        };
        // `run_begins` and `run_ends` record that the function itself is running. A panic inside it
        // is the task's; a panic outside comes from decoding or encoding a value.
        //
        // The reader is dropped where it is. To move it out of the way would cost as much as
        // decoding a number.
        let (bind, locals) = match arguments {
            [] => (None, None),
            _ => {
                let locals = arguments.iter().map(|argument| &argument.local);
                let locals = quote!((#(#locals,)*));
                (Some(quote!(let #locals =)), Some(locals))
            }
        };
        let end = bind.as_ref().map(|_| quote!(;));
        let body = quote! {
            #bind {
                let mut #reader = __executor::Arguments::<#format>::new(#bytes, #cx);
                #(#decode)*
                if let ::core::result::Result::Err(failed) = #reader.finish() {
                    return failed;
                }
                #locals
            } #end
            #cx.run_begins();
            let #returns: #returned = #ident(#(#pass),*)#dot_await;
            #cx.run_ends();
            match __executor::Outcome::<{ <__executor::Probe<#returned>>::IS_RESULT }>::into_result(#returns) {
                ::core::result::Result::Ok(__output) => #reply,
                ::core::result::Result::Err(__error) => #failed,
            }
        };
        let made = match &self.subject {
            Subject::Method { role: Some(role), .. } => {
                quote!(__executor::Call::Managed(__call, __executor::Role::#role))
            }
            _ => quote!(__executor::Call::Sync(__call)),
        };
        if self.function.is_async {
            quote! {{
                fn __call<'a>(
                    #bytes: &'a [::core::primitive::u8],
                    #cx: &'a mut __executor::CallContext,
                ) -> ::core::pin::Pin<
                    ::std::boxed::Box<dyn ::core::future::Future<Output = __executor::CallResult> + 'a>
                > {
                    ::std::boxed::Box::pin(async move { #body })
                }
                __executor::Call::Async(__call)
            }}
        } else {
            quote! {{
                fn __call(
                    #bytes: &[::core::primitive::u8],
                    #cx: &mut __executor::CallContext,
                ) -> __executor::CallResult {
                    #body
                }
                #made
            }}
        }
    }

    fn format(&self) -> TokenStream {
        match self.attr.codec {
            Codec::Postcard => quote!(__executor::Postcard),
            Codec::MessagePack => quote!(__executor::MessagePack),
        }
    }
}

/// An expression for how a value of this type is encoded. The compiler chooses by the traits that
/// the type implements, which a macro cannot see.
fn way(format: &TokenStream, ty: &impl ToTokens, span: Span) -> TokenStream {
    quote_spanned!(span=> __executor::way::<#format, #ty, _, _>(<__executor::Probe<#ty>>::VIA))
}

/// The same as [`way`], for the type of an argument. A slice `&[T]` is sent as a `Vec<T>`, except
/// `&[u8]`, which [`way`] sends as a byte string.
fn argument_way(format: &TokenStream, ty: &Type) -> TokenStream {
    match ty {
        Type::Slice(slice) if !types::is_byte_slice(ty) => {
            let item = &slice.elem;
            quote_spanned!(item.span()=> __executor::slice_way::<#format, #item>())
        }
        _ => way(format, ty, ty.span()),
    }
}

pub(crate) fn is_doc_hidden(attr: &Attribute) -> bool {
    attr.path().is_ident("doc") && attr.parse_args::<Ident>().is_ok_and(|arg| arg == "hidden")
}
