//! Expands `#[managed] impl Counter { … }`. It generates a type `CounterProxy` with the public
//! methods, and for each of them a task function, which runs in a manager's server.
//!
//! ```text
//!  pub fn add(&mut self, n: u64) -> u64
//!     ├─► fn __add(n: u64) -> u64 { with_mut(|this| <Counter>::add(this, n)) }, registered as a task
//!     └─► CounterProxy::add(&self, n: u64) -> Result<u64, ManagerError>, and add_async
//! ```

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{
    Attribute, Error, ExprPath, FnArg, GenericArgument, Generics, ImplItem, ImplItemFn, ItemImpl,
    PathArguments, ReceiverKind, Result, ReturnType, Safety, Type, TypeImplTrait, TypeParamBound,
    TypePath, Visibility,
    ext::IdentExt,
    parse_quote, parse_quote_spanned,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

use crate::{
    attr::{ManagedAttr, TaskAttr},
    check::{Param, Refusals, TaskFunction, plain_name, refuse_parameters, unused_name},
    expand::{Subject, Task},
    types,
};

pub(crate) fn managed(attr: TokenStream, item: TokenStream) -> TokenStream {
    let generated = generate(attr, item.clone()).unwrap_or_else(|error| error.to_compile_error());
    quote!(#item #generated)
}

/// What a call does with the object.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// It makes the object, or fails to.
    Constructor { fallible: bool },
    /// It has the object for itself.
    Exclusive,
    /// It runs beside others.
    Shared,
}

impl Role {
    /// Returns the variant of the registry's `Role`. The server learns from it which calls can run
    /// together.
    fn name(self) -> &'static str {
        match self {
            Role::Constructor { .. } => "Constructor",
            Role::Exclusive => "Exclusive",
            Role::Shared => "Shared",
        }
    }
}

/// A public method that has passed all checks.
struct Method {
    attrs: Vec<Attribute>,
    ident: Ident,
    /// The generated function.
    hidden: Ident,
    role: Role,
    params: Vec<Param>,
    output: Option<Type>,
    /// The type of the items, if it returns an iterator.
    items: Option<Type>,
}

fn generate(attr: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let attr = ManagedAttr::parse(attr)?;
    let item: ItemImpl = syn::parse2(item).map_err(|error| {
        Error::new(
            error.span(),
            format!("`#[managed]` can only be used on an `impl` block: {error}"),
        )
    })?;
    let own = own_type(&item)?;
    let mut refusals = Refusals::of("a managed method");
    let mut methods = Vec::new();
    let mut names = Vec::new();
    for item in &item.items {
        if let ImplItem::Fn(function) = item
            && matches!(function.vis, Visibility::Public(_))
        {
            names.push(function.sig.ident.unraw().to_string());
            methods.extend(check(function, &own, &mut refusals));
        }
    }
    for method in &methods {
        if method.ident.unraw() == "with_timeout" {
            refusals.add(
                method.ident.span(),
                "the proxy of a managed type has a method `with_timeout` of its own; choose another name, \
                 or remove `pub`",
            );
        }
        let other = format!("{}_async", method.ident.unraw());
        if names.contains(&other) {
            let message = format!(
                "the proxy of a managed type gets a method `{other}` for this one, and there is one \
                 of that name"
            );
            refusals.add(method.ident.span(), &message);
        }
    }
    refusals.into_result()?;
    if !methods.iter().any(|method| matches!(method.role, Role::Constructor { .. })) {
        return Err(Error::new_spanned(
            &item.self_ty,
            "a managed type needs a constructor, which its proxy calls to make an object: a `pub fn` \
             without `self` that returns `Self` or `Result<Self, E>`",
        ));
    }
    Ok(expand(&attr, &item, &own, &methods))
}

/// Checks what the block is for, and returns the type.
fn own_type(item: &ItemImpl) -> Result<TypePath> {
    let Type::Path(own) = &*item.self_ty else {
        return Err(Error::new_spanned(
            &item.self_ty,
            "`#[managed]` needs a named type, such as a struct or an enum",
        ));
    };
    if let Some((path, _)) = &item.trait_ {
        return Err(Error::new_spanned(
            path,
            "`#[managed]` cannot be used on the implementation of a trait: write methods of the type \
             itself, which may call those of the trait",
        ));
    }
    if !item.generics.params.is_empty() || types::has_lifetimes(&item.self_ty) {
        let message = "`#[managed]` cannot be used on a generic type: the server must know the type; write the \
                       block for one type, such as `impl Stack<u8>`";
        return Err(match item.generics.params.is_empty() {
            true => Error::new_spanned(own, message),
            false => Error::new_spanned(&item.generics, message),
        });
    }
    Ok(own.clone())
}

fn check(function: &ImplItemFn, own: &TypePath, refusals: &mut Refusals) -> Option<Method> {
    let before = refusals.count();
    let sig = &function.sig;
    if let Safety::Unsafe(token) = &sig.safety {
        refusals.add(
            token.span,
            "a managed method cannot be `unsafe`: the server that calls it cannot uphold its safety \
             requirements; remove `pub`",
        );
    }
    if let Some(token) = &sig.asyncness {
        refusals.add(
            token.span,
            "a managed method cannot be `async`: a thread of the server runs it from its begin to its \
             end; the proxy's method has an async form in any case",
        );
    }
    refuse_parameters(&sig.generics, "server", "method", refusals);

    let plain: Vec<Ident> = sig.inputs.iter().filter_map(plain_name).collect();
    let mut params = Vec::new();
    let mut role = None;
    for (i, input) in sig.inputs.iter().enumerate() {
        match input {
            FnArg::Receiver(receiver) => {
                role = match &receiver.kind {
                    ReceiverKind::Reference(_, _, None) => Some(Role::Shared),
                    ReceiverKind::Reference(_, _, Some(_)) => Some(Role::Exclusive),
                    _ => {
                        refusals.add(
                            receiver.self_token.span,
                            "a managed method must take `&self` or `&mut self`: the object stays in the \
                             server, for its other proxies",
                        );
                        Some(Role::Exclusive)
                    }
                };
            }
            FnArg::Typed(param) => {
                if let Some(cfg) = param.attrs.iter().find(|attr| attr.path().is_ident("cfg")) {
                    refusals.add(
                        cfg.span(),
                        "a parameter cannot have `#[cfg]`: put it on the whole method, and write one method \
                         for each signature",
                    );
                }
                let mut ty = (*param.ty).clone();
                name_self(&mut ty, own);
                types::check_param(&ty, refusals);
                types::infer_lifetimes(&mut ty);
                let ident = plain_name(input).unwrap_or_else(|| unused_name(i, &plain));
                params.push(Param { ident, ty });
            }
        }
    }

    let mut output = match &sig.output {
        ReturnType::Default => None,
        ReturnType::Type(_, ty) => Some((**ty).clone()),
    };
    let mut items = None;
    let role = match role {
        Some(role) => {
            if let Some(ty) = &mut output {
                name_self(ty, own);
                items = iterator_items(ty);
                types::check_output(items.as_ref().unwrap_or(ty), refusals);
            }
            if let Some(item) = &items {
                output = Some(parse_quote_spanned!(item.span()=> ::std::vec::Vec<#item>));
            }
            role
        }
        None => match constructed(output.as_ref(), own) {
            Some(Constructed::Value) => {
                output = None;
                Role::Constructor { fallible: false }
            }
            Some(Constructed::Result(result)) => {
                types::check_output(&result, refusals);
                output = Some(*result);
                Role::Constructor { fallible: true }
            }
            None => {
                refusals.add(
                    sig.ident.span(),
                    "a `pub fn` without `self` must be a constructor, which returns `Self` or \
                     `Result<Self, E>`: any other function has no object that it could be called on; \
                     remove `pub`, or move it to another `impl` block",
                );
                Role::Shared
            }
        },
    };
    if refusals.count() > before {
        return None;
    }
    let name = sig.ident.unraw();
    Some(Method {
        attrs: function.attrs.clone(),
        ident: sig.ident.clone(),
        hidden: Ident::new(&format!("__{name}"), sig.ident.span()),
        role,
        params,
        output,
        items,
    })
}

/// Writes the type's name for `Self`: outside the block, `Self` means nothing.
pub(crate) fn name_self(ty: &mut Type, own: &TypePath) {
    struct NameSelf<'a>(&'a TypePath);
    impl VisitMut for NameSelf<'_> {
        /// A constant of the type, as in `[u8; Self::LENGTH]`.
        fn visit_expr_path_mut(&mut self, path: &mut ExprPath) {
            let begins = path.path.segments.first().is_some_and(|first| first.ident == "Self");
            if begins && path.qself.is_none() && path.path.segments.len() > 1 {
                let own = self.0;
                let rest = path.path.segments.iter().skip(1);
                *path = parse_quote_spanned!(path.span()=> <#own>::#(#rest)::*);
                return;
            }
            visit_mut::visit_expr_path_mut(self, path);
        }

        fn visit_type_mut(&mut self, ty: &mut Type) {
            if let Type::Path(path) = ty
                && path.qself.is_none()
                && path.path.is_ident("Self")
            {
                *ty = Type::Path(self.0.clone());
                return;
            }
            visit_mut::visit_type_mut(self, ty);
        }
    }
    NameSelf(own).visit_type_mut(ty);
}

/// What a constructor returns.
enum Constructed {
    Value,
    /// A `Result`. This is the type with `()` in place of the object.
    Result(Box<Type>),
}

fn constructed(output: Option<&Type>, own: &TypePath) -> Option<Constructed> {
    let mut output = output?.clone();
    name_self(&mut output, own);
    let own = Type::Path(own.clone());
    if output == own {
        return Some(Constructed::Value);
    }
    let Type::Path(path) = &mut output else { return None };
    let last = path.path.segments.last_mut().filter(|last| last.ident == "Result")?;
    let PathArguments::AngleBracketed(arguments) = &mut last.arguments else { return None };
    match arguments.args.first_mut() {
        Some(GenericArgument::Type(value)) if *value == own => *value = parse_quote!(()),
        _ => return None,
    }
    Some(Constructed::Result(output.into()))
}

/// Returns `T` of `impl Iterator<Item = T>`.
fn iterator_items(ty: &Type) -> Option<Type> {
    let Type::ImplTrait(TypeImplTrait { bounds, .. }) = ty else { return None };
    let traits = bounds.iter().filter_map(|bound| match bound {
        TypeParamBound::Trait(bound) => bound.path.segments.last(),
        _ => None,
    });
    let arguments = traits
        .filter(|last| {
            ["Iterator", "DoubleEndedIterator", "ExactSizeIterator", "IntoIterator"]
                .iter()
                .any(|name| last.ident == name)
        })
        .filter_map(|last| match &last.arguments {
            PathArguments::AngleBracketed(arguments) => Some(&arguments.args),
            _ => None,
        });
    arguments.flatten().find_map(|argument| match argument {
        GenericArgument::AssocType(item) if item.ident == "Item" => Some(item.ty.clone()),
        _ => None,
    })
}

fn expand(attr: &ManagedAttr, item: &ItemImpl, own: &TypePath, methods: &[Method]) -> TokenStream {
    let krate = &attr.krate;
    let own_name =
        own.path.segments.last().map(|last| last.ident.unraw().to_string()).unwrap_or_default();
    let proxy = attr.name.clone().unwrap_or_else(|| format_ident!("{own_name}Proxy"));
    let proxy_text = proxy.unraw().to_string();
    let cfgs: Vec<&Attribute> =
        item.attrs.iter().filter(|attr| attr.path().is_ident("cfg")).collect();
    let doc = format!(
        "A handle of a [`{own_name}`] in a manager's server. Its methods are those of the type. It can be sent \
         to other processes, and the object lives as long as there is a handle of it."
    );
    let timeout_doc = format!(
        "Returns another handle of the same object, whose calls take at most `timeout`. A call that takes longer \
         ends with [`ManagerError::TimedOut`]({krate}::manager::ManagerError::TimedOut).\n\n\
         If its method still waits for its turn then, it is not run. If it runs, it goes on to its end, and its \
         result is lost. Calls that come later wait for it. A copy of the handle has the same timeout, and one that \
         was sent to another process has none.",
        krate = quote!(#krate).to_string().replace(' ', "")
    );
    let tasks = methods.iter().map(|method| task(attr, own, &own_name, method));
    let calls = methods.iter().map(|method| call(krate, method));
    quote! {
        #(#cfgs)*
        #[doc = #doc]
        #[allow(dead_code, unreachable_pub)]
        pub struct #proxy(#krate::__private::managed::Handle);

        #(#cfgs)*
        // The block keeps the generated functions' names out of the user's module.
        #[allow(
            dead_code, deprecated, missing_docs, non_snake_case, private_interfaces, unreachable_pub,
            unused_qualifications, clippy::all, clippy::pedantic, clippy::nursery
        )]
        const _: () = {
            use #krate::__private as __managed;
            #(#tasks)*

            impl #proxy {
                #(#calls)*

                #[doc = #timeout_doc]
                #[must_use = "the timeout is that of the handle that is returned"]
                pub fn with_timeout(&self, timeout: ::core::time::Duration) -> Self {
                    Self(self.0.with_timeout(timeout))
                }
            }

            #[automatically_derived]
            impl ::core::clone::Clone for #proxy {
                #[doc = "Returns another handle of the same object."]
                fn clone(&self) -> Self {
                    Self(::core::clone::Clone::clone(&self.0))
                }
            }

            #[automatically_derived]
            impl ::core::fmt::Debug for #proxy {
                #[doc = "Writes which object it is. The value is in the server."]
                fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    f.debug_tuple(#proxy_text).field(&self.0).finish()
                }
            }

            #[automatically_derived]
            impl ::core::cmp::PartialEq for #proxy {
                #[doc = "Returns whether both are handles of the same object."]
                fn eq(&self, other: &Self) -> ::core::primitive::bool {
                    ::core::cmp::PartialEq::eq(&self.0, &other.0)
                }
            }

            #[automatically_derived]
            impl ::core::cmp::Eq for #proxy {}

            #[automatically_derived]
            impl ::core::hash::Hash for #proxy {
                fn hash<__H: ::core::hash::Hasher>(&self, state: &mut __H) {
                    ::core::hash::Hash::hash(&self.0, state)
                }
            }

            #[automatically_derived]
            impl __managed::managed::serde::Serialize for #proxy {
                fn serialize<__S: __managed::managed::serde::Serializer>(
                    &self,
                    serializer: __S,
                ) -> ::core::result::Result<__S::Ok, __S::Error> {
                    __managed::managed::serde::Serialize::serialize(&self.0, serializer)
                }
            }

            #[automatically_derived]
            impl<'de> __managed::managed::serde::Deserialize<'de> for #proxy {
                fn deserialize<__D: __managed::managed::serde::Deserializer<'de>>(
                    deserializer: __D,
                ) -> ::core::result::Result<Self, __D::Error> {
                    ::core::result::Result::map(
                        __managed::managed::serde::Deserialize::deserialize(deserializer),
                        Self,
                    )
                }
            }
        };
    }
}

/// Generates the task function that runs in the server.
fn task(attr: &ManagedAttr, own: &TypePath, own_name: &str, method: &Method) -> TokenStream {
    let Method { attrs, ident, hidden, role, params, output, items } = method;
    let krate = &attr.krate;
    let cfgs: Vec<Attribute> =
        attrs.iter().filter(|attr| attr.path().is_ident("cfg")).cloned().collect();
    let (names, tys): (Vec<_>, Vec<_>) =
        params.iter().map(|param| (&param.ident, &param.ty)).unzip();
    let this = Ident::new("this", Span::mixed_site());
    let collect =
        items.as_ref().map(|_| quote!(let #this = ::core::iter::IntoIterator::into_iter(#this);));
    let collected = match items {
        Some(_) => quote!(::core::iter::Iterator::collect(#this)),
        None => quote!(#this),
    };
    let lib = quote!(#krate::__private::managed);
    // The span shows the user's type where it is no `Send + Sync`.
    let body = match role {
        Role::Constructor { fallible: false } => {
            quote_spanned!(ident.span()=> #lib::construct::<#own>(<#own>::#ident(#(#names),*)))
        }
        Role::Constructor { fallible: true } => quote_spanned! {ident.span()=>
            ::core::result::Result::map(<#own>::#ident(#(#names),*), #lib::construct::<#own>)
        },
        Role::Exclusive | Role::Shared => {
            let with = match role {
                Role::Exclusive => quote!(with_mut),
                _ => quote!(with_ref),
            };
            quote_spanned! {ident.span()=>
                #lib::#with::<#own, _>(|#this| {
                    let #this = <#own>::#ident(#this, #(#names),*);
                    #collect
                    #collected
                })
            }
        }
    };
    let arrow = output.as_ref().map(|output| quote!(-> #output));
    let task = Task {
        attr: TaskAttr { name: None, handle: None, krate: krate.clone(), codec: attr.codec },
        handle: hidden.clone(),
        function: TaskFunction {
            attrs: cfgs.clone(),
            vis: Visibility::Inherited,
            is_async: false,
            ident: hidden.clone(),
            generics: Generics::default(),
            params: params
                .iter()
                .map(|param| Param { ident: param.ident.clone(), ty: param.ty.clone() })
                .collect(),
            output: output.clone(),
        },
        subject: Subject::Method {
            name: format!("{own_name}::{}", ident.unraw()),
            has_receiver: false,
            role: Some(Ident::new(role.name(), Span::call_site())),
        },
    };
    let registered = task.expand();
    quote! {
        #(#cfgs)*
        fn #hidden(#(#names: #tys),*) #arrow {
            #body
        }
        #registered
    }
}

/// Generates the two methods of the proxy.
fn call(krate: &syn::Path, method: &Method) -> TokenStream {
    let Method { attrs, ident, hidden, role, params, output, items } = method;
    let kept: Vec<_> = attrs
        .iter()
        .filter(|attr| ["cfg", "doc", "deprecated"].iter().any(|name| attr.path().is_ident(name)))
        .collect();
    let other: Vec<_> = attrs
        .iter()
        .filter(|attr| ["cfg", "deprecated"].iter().any(|name| attr.path().is_ident(name)))
        .collect();
    let (names, tys): (Vec<_>, Vec<_>) =
        params.iter().map(|param| (&param.ident, &param.ty)).unzip();
    let name = ident.unraw();
    let ident_async = format_ident!("{name}_async", span = ident.span());
    let errors = format!(
        "\n\n# Errors\n[`ManagerError::Failed`]({}::manager::ManagerError::Failed) if the method in the server \
         fails or panics. The other errors are those of every managed object.",
        quote!(#krate).to_string().replace(' ', "")
    );
    let doc_async = format!(
        "Does what [`{name}`](Self::{name}) does, without blocking the thread. If the future is dropped early, \
         the call may or may not have been made."
    );
    let lib = quote!(__managed::managed::Handle);
    let error = quote!(#krate::manager::ManagerError);
    let task = quote!(#hidden::task(#(#names),*));
    if let Role::Constructor { .. } = role {
        let manager = Ident::new("manager", Span::mixed_site());
        let doc =
            format!("Makes an object in the manager's server, with `{name}` of the type.\n\n");
        return quote! {
            #[doc = #doc]
            #(#kept)*
            #[doc = #errors]
            pub fn #ident(
                #manager: &#krate::manager::Manager,
                #(#names: #tys),*
            ) -> ::core::result::Result<Self, #error> {
                ::core::result::Result::map(#lib::create(#manager, #task), Self)
            }

            #(#other)*
            #[doc = #doc_async]
            pub async fn #ident_async(
                #manager: &#krate::manager::Manager,
                #(#names: #tys),*
            ) -> ::core::result::Result<Self, #error> {
                ::core::result::Result::map(#lib::create_async(#manager, #task).await, Self)
            }
        };
    }
    let (returned, convert) = match items {
        Some(item) => (quote!(::std::vec::IntoIter<#item>), true),
        None => (returned(hidden, output.as_ref()), false),
    };
    let converted = |call: TokenStream| match convert {
        true => quote!(::core::result::Result::map(#call, ::core::iter::IntoIterator::into_iter)),
        false => call,
    };
    let call = converted(quote!(self.0.call(#task)));
    let call_async = converted(quote!(self.0.call_async(#task).await));
    quote! {
        #(#kept)*
        #[doc = #errors]
        pub fn #ident(&self, #(#names: #tys),*) -> ::core::result::Result<#returned, #error> {
            #call
        }

        #(#other)*
        #[doc = #doc_async]
        pub async fn #ident_async(
            &self,
            #(#names: #tys),*
        ) -> ::core::result::Result<#returned, #error> {
            #call_async
        }
    }
}

/// Returns what a call of the proxy gives: `T` for a method that returns `Result<T, E>`.
///
/// The compiler knows it as the output of the task function. For the types that are spelled most
/// often, documentation shows them as they are spelled.
fn returned(hidden: &Ident, output: Option<&Type>) -> TokenStream {
    const PLAIN: [&str; 24] = [
        "bool", "char", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64",
        "i128", "isize", "f32", "f64", "String", "Vec", "Option", "HashMap", "HashSet", "BTreeMap",
        "BTreeSet", "Duration",
    ];
    let Some(output) = output else { return quote!(()) };
    let projected = quote!(<#hidden as __managed::TaskFn>::Output);
    match output {
        Type::Tuple(_) | Type::Array(_) => quote!(#output),
        Type::Path(path) => match path.path.segments.last() {
            Some(last) if PLAIN.iter().any(|plain| last.ident == plain) => quote!(#output),
            Some(last) if last.ident == "Result" => match &last.arguments {
                PathArguments::AngleBracketed(arguments) => match arguments.args.first() {
                    Some(GenericArgument::Type(value)) => quote!(#value),
                    _ => projected,
                },
                _ => projected,
            },
            _ => projected,
        },
        _ => projected,
    }
}
